"""What a run says of the machine and the packages that it was made with."""

import importlib.metadata

from hpcvision import provenance


def test_the_packages_are_those_that_are_installed_with_their_versions():
    found = provenance.packages.__wrapped__()  # what other tests have imported since may have brought some
    whole = {f"{item.metadata['Name']}=={item.version}" for item in importlib.metadata.distributions()}
    assert set(found) == whole
    assert found == sorted(found, key=str.lower)
