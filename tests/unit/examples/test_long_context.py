"""examples/long_context without ranks: what is refused, the text, the batches."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from examples.long_context import layout, text, train
from examples.long_context.data import Text, document_lengths
from examples.long_context.layout import Layout
from examples.long_context.options import Options


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_bytes(text.make_text(5000))
    return path


REFUSED = {
    "--layout 1x2": "layout='1x2' must be DPxRINGxULYSSESxTP, four whole numbers",
    "--layout 1x0x1x1": "layout='1x0x1x1' must be",
    "--layout 1x2x2x1": "dp=1 x ring=2 x ulysses=2 x tp=1 needs 4 ranks, got 1: start torchrun "
    "with --nproc-per-node 4, or try --layout 1x1x1x1",
    "--layout 1x1x1x3 --batch-size 3": "needs 3 ranks, got 1",
    "--batch-size 3 --accumulation 2": "batch_size=3 must be a multiple of dp=1 x accumulation=2",
    "--batch-size 4 --packed": "with packed documents, which end at different tokens in each "
    "sequence, needs a pass for each: try --accumulation 4",
    "--num-tokens 1": "num_tokens=1 leaves nothing to predict",
    "--num-tokens 3 --layout 1x2x2x1": "num_tokens=3 leaves some of the 4 ranks of a sequence "
    "without a token, which transformers cannot take: try --num-tokens 8",
    "--num-tokens 5001": "has 5000 bytes, fewer than num_tokens=5001",
    "--text missing.txt": "text='missing.txt' is no file: make one with python -m examples.long_",
    "--checkpoints pyproject.toml": "checkpoints='pyproject.toml' is no folder: name another",
    "--width 36 --heads 4": "width=36 must be an even multiple of heads=4",
    "--heads 4 --kv-heads 3": "kv_heads=3 must divide heads=4",
    "--steps 0": "steps=0 must be at least 1",
    "--learning-rate nan": "learning_rate=nan must be a number above 0",
    "--learning-rate 1e300": "learning_rate=1e+300 must be a number above 0, below 1e30",
    "--seed 9223372036854775808": "must be at least 0, below 2**63",
    "--checkpoints pyproject.toml/run": "cannot be made (Not a directory): name another folder",
    "--zero 1": "argument --zero: invalid choice: 1",
    "--recompute some": "argument --recompute: invalid choice: 'some'",
    "--wide 3": "unrecognized arguments: --wide 3",
}


@pytest.mark.parametrize("words", REFUSED)
def test_bad_input_is_one_line_and_exit_code_2(
    words: str, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = [] if "--text" in words else ["--text", str(corpus)]
    assert train.main([*text, *words.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("train: ")
    assert REFUSED[words] in err


def test_the_mesh_of_a_sequence_is_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    connected: list[DeviceMesh] = []
    monkeypatch.setattr(layout, "connect_mesh", connected.append)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert Layout().build_meshes("cpu").sequence in connected
    finally:
        dist.destroy_process_group()


def test_heads_that_tensor_parallelism_cannot_split_are_refused(
    corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ["--text", str(corpus), "--layout", "1x1x1x2", "--heads", "4", "--kv-heads", "1"]
    assert train.main(words) == 2
    assert capsys.readouterr().err == (
        "train: tp=2 does not divide 1 KV heads: lower tp and raise ulysses or ring, which take "
        "any number of heads\n"
    )


def test_other_ranks_refuse_in_silence(
    corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(train, "FIRST_RANK_PRINTS_S", 0)
    assert train.main(["--text", str(corpus), "--layout", "1"]) == 2
    assert capsys.readouterr() == ("", "")


def test_folder_that_is_no_checkpoint_is_refused(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = corpus.with_name("checkpoints")
    (folder / "step-3").mkdir(parents=True)
    assert train.main(["--text", str(corpus), "--checkpoints", str(folder)]) == 2
    err = capsys.readouterr().err
    assert "step-3 is no checkpoint, for its run.json cannot be read: remove it\n" in err


def test_help_lists_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train.main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for name in Options.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in out


def test_layout_reads_what_it_writes() -> None:
    layout = Layout.parse("2x3x4x5")
    assert layout == Layout(dp=2, ring=3, ulysses=4, tp=5)
    assert (str(layout), layout.num_ranks) == ("2x3x4x5", 120)


def test_text_is_the_same_everywhere_and_remembers() -> None:
    made = text.make_text(100_000, seed=3)
    assert hashlib.sha256(made).hexdigest()[:16] == "18b99a1b5e21068f"
    assert made != text.make_text(100_000, seed=4)
    questions = 0
    for story in made.decode().split("\n\n")[:-1]:
        places: dict[str, str] = {}
        for line in story.splitlines():
            if line.startswith("Where"):
                thing, place = line.removeprefix("Where is the ").split("? In the ")
                assert places[thing] == place
                questions += 1
            else:
                thing, place = line.split(" puts the ")[1].split(" in the ")
                places[thing] = place
    assert questions > 500


def test_batches_depend_on_seed_and_step_alone(corpus: Path) -> None:
    data = torch.frombuffer(bytearray(corpus.read_bytes()), dtype=torch.uint8)
    mapped = Text.from_file(corpus, 100, 3, seed=5)
    assert mapped.batch(7).shape == (3, 100)
    assert torch.equal(mapped.batch(7), Text(data, 100, 3, seed=5).batch(7))
    others = [Text(data, 100, 3, seed=6).batch(7), Text(data, 100, 3, seed=5).batch(8)]
    assert not any(torch.equal(mapped.batch(7), other) for other in others)
    (row,) = Text(data, 5000, 1, seed=0).batch(0)
    assert torch.equal(row, data.long())


@pytest.mark.parametrize(
    ("row", "lengths"),
    [
        ("abc", (3,)),
        ("ab\n\ncd", (4, 2)),
        ("ab\n\n", (4,)),
        ("\n\nab", (2, 2)),
        ("a\n\n\nb", (3, 1, 1)),
        ("a\nb\n\nc\n\nd", (5, 3, 1)),
    ],
)
def test_documents_end_at_empty_lines(row: str, lengths: tuple[int, ...]) -> None:
    assert document_lengths(torch.tensor(list(row.encode()))) == lengths


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["corpus.txt", "--num-bytes", "0"], "--num-bytes 0 must be at least 1"),
        (["missing/corpus.txt"], "corpus.txt cannot be written: No such file or directory"),
    ],
)
def test_texts_that_cannot_be_made_are_refused(
    words: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["text", *words])
    with pytest.raises(SystemExit, match="2"):
        text.main()
    assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
