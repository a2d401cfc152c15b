"""replacing(): the old file or the new one."""

from pathlib import Path

import pytest

from sparsecore.atomic import replacing, require_place


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


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    require_place(tmp_path / "a")
    (tmp_path / "a").touch()
    require_place(tmp_path / "a")
    assert names(tmp_path) == ["a"]
    for path, error in ((tmp_path, IsADirectoryError), (tmp_path / "b" / "c", FileNotFoundError)):
        with pytest.raises(error, match=str(path)):
            require_place(path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        require_place(tmp_path / "a" / "b")


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
