"""Torch's libraries loaded ahead: they are in the process before torch is imported, and torch is as it would be."""

import subprocess
import sys

RESULT = """
x = torch.arange(12.0).reshape(3, 4)
print((x @ x.T).sum().item(), torch.linalg.svd(x)[1].sum().item(), torch.backends.mkldnn.is_available())
"""
AHEAD = """
import threading
from hpcvision import ahead
ahead.load_torch()
for thread in threading.enumerate():
    if thread is not threading.main_thread():
        thread.join()
import sys
assert "torch" not in sys.modules
assert "/libtorch_cpu.so" in open("/proc/self/maps").read()
"""


def python(code):
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_the_libraries_are_there_before_torch_is_and_it_works_as_without():
    assert python(AHEAD + "import torch\n" + RESULT) == python("import torch\n" + RESULT)


def test_a_process_that_ends_at_once_ends_well():
    for _ in range(5):
        assert python("from hpcvision import ahead; ahead.load_torch()") == ""


def test_where_there_is_no_torch_nothing_happens(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from hpcvision import ahead; ahead.load_torch()"
    assert python(code + "; import torch; print(torch.__file__)") == f"{tmp_path}/torch/__init__.py\n"
