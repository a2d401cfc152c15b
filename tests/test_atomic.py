"""replacing(): the old file or the new one."""

from pathlib import Path

import pytest

from sparsecore.atomic import replacing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_new_file_takes_the_place_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for text in ("old", "new"):
        with replacing(path) as new:
            new.write_text(text)
        assert path.read_text() == text
        assert names(tmp_path) == ["a"]


def test_permissions_are_those_of_a_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "a") as new:
        new.chmod(0o600)
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_alone(error: type[BaseException], tmp_path: Path) -> None:
    def fail() -> None:
        with replacing(tmp_path / "a") as new:
            new.write_text("half")
            raise error

    (tmp_path / "a").write_text("old")
    with pytest.raises(error):
        fail()
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]
