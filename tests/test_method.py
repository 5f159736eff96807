"""The experiment of benchmarks/method: its tasks, its data, its bytes, and a shortened run from pictures to tables."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.method import ROOT, models, report, storage
from benchmarks.method.data import Encoder, QuestionCollator, Scenes, make_tokenizer
from benchmarks.method.evaluation import accuracy, held_out_questions
from benchmarks.method.tasks import BASE_SHARES, BOOKS, TABLES, TASKS
from benchmarks.method.variants import ROWS, VARIANT, VARIANTS

from mote_export.passes import PackOptions, apply_passes, pack_ternary_experts
from mote_export.report import expert_memory


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(0)
    return Scenes(torch.zeros(20, 3, 48, 48, dtype=torch.uint8), rng.integers(0, 10, size=(20, 4)))


def test_answers_are_true_of_the_scene():
    rng = np.random.default_rng(1)
    asked = {name: [task.ask((7, 0, 3, 9), rng) for _ in range(50)] for name, task in TASKS.items()}
    assert ("Which digit is third?", "3") in asked["read"]
    assert asked["sort"][0].answer == "0 3 7 9"
    assert asked["sum"][0].answer == "19"
    assert {("Add the rows.", "109"), ("Add the columns.", "82")} == set(asked["add"])
    assert all(
        answer == {"first": {"third": "21"}}["first"]["third"]
        for q, answer in asked["product"]
        if q == "first times third?"
    )
    assert all(answer == "2" for question, answer in asked["above"] if question == "How many digits are above 6?")
    assert all(answer == f"{BOOKS[2, 9]:02d}" for question, answer in asked["book"] if question == "Book C, fourth?")
    assert all(answer == str(TABLES[1, 7, 9]) for question, answer in asked["table"] if question == "first B fourth?")
    assert len(TASKS) >= 5
    assert "book" not in BASE_SHARES


def test_a_row_follows_from_its_number_and_questions_do_not_see_each_other(tokenizer, scenes):
    collator = QuestionCollator(scenes, Encoder(tokenizer), 3, {name: task.share for name, task in TASKS.items()})
    batch, again = collator([5, 6]), collator([6])
    for name, tensor in again.items():
        assert torch.equal(batch[name][1:], tensor), name
    ids, labels, mask = batch["input_ids"][0], batch["labels"][0], batch["attention_mask"][0, 0]
    answers = torch.where(labels != -100)[0]
    assert torch.equal(ids[answers], labels[answers])
    start = len(collator.encode.prefix)
    first, last = int(answers[0]), int(answers[-1])
    assert mask[last, :start].all()
    assert not mask[last, start : first + 1].any()
    assert batch["position_ids"][0, start] == start


def test_accuracy_is_that_of_greedy_decoding(tokenizer, scenes):
    torch.manual_seed(0)
    model, encode = models.make_dense(tokenizer).eval(), Encoder(tokenizer)
    questions = held_out_questions(scenes, 3)
    # Answers are made those that the model gives, for some tasks.
    given = []
    for question in questions:
        ids = torch.tensor([encode.prefix + encode.pair(*question.asked)[0]])
        pixels = scenes.pixels[[question.scene]].float() / 127.5 - 1.0
        new = model.generate(
            input_ids=ids,
            pixel_values=pixels,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=len(encode.pair(*question.asked)[1]),
            do_sample=False,
        )[0, ids.shape[1] :].tolist()
        given.append(new == encode.pair(*question.asked)[1])
    shares = accuracy(model, scenes, encode, questions)
    assert shares["mean"] == pytest.approx(sum(given) / len(given))


@pytest.mark.parametrize("name", ["mote", "mote-16"])
@pytest.mark.parametrize("shared", ["bf16", "int8", "int4"])
def test_bytes_of_mote_are_those_of_its_packed_layers(tokenizer, name, shared):
    model = models.make_variant(models.make_dense(tokenizer), VARIANT[name])
    counted = storage.expert_bytes(model, shared)
    apply_passes(model.get_decoder(), [pack_ternary_experts(PackOptions("2bit", shared, storage.GROUP))])
    assert counted == expert_memory(model).total


def test_every_row_is_stored_from_its_variant_which_stays_as_it_is(tokenizer):
    torch.manual_seed(0)
    sizes = {}
    for variant in VARIANTS:
        model = models.make_variant(models.make_dense(tokenizer), variant).to(torch.bfloat16)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for row in (row for row in ROWS if row.variant == variant.name):
            kinds = list(storage.stored(model, row))
            sizes[row.name] = kinds[0].expert_bytes
            assert len(kinds) == (2 if row.storage.startswith("int") else 1)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert set(sizes) == {row.name for row in ROWS}
    # The orders of the paper's table of memory.
    assert sizes["moe-llava-bf16"] > sizes["mote-bf16"] > sizes["mote-int8"] > sizes["mote-int4"] > sizes["dense-int4"]
    assert sizes["mote-int4"] == pytest.approx(sizes["moe-llava-int3"], rel=0.08)
    assert sizes["mote-int4"] == pytest.approx(sizes["moe-llava-3-int4"], rel=0.08)


def test_the_page_of_results_has_the_table_of_the_last_run(tmp_path: Path):
    results = ROOT / "benchmarks" / "results"
    report.render(json.loads((results / "method.json").read_text()), tmp_path)
    made = (tmp_path / "method.md").read_text()
    assert made == (results / "method.md").read_text()
    page = (ROOT / "docs" / "results.md").read_text().splitlines()
    rows = [line for line in made.splitlines() if line.startswith("|")]
    assert len(rows) > len(ROWS)
    assert [row for row in rows if row not in page] == []


@pytest.mark.long
def test_a_shortened_run_goes_on_where_it_was_cut_off(tmp_path: Path):
    def run(*more: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "benchmarks.method",
            "--work",
            tmp_path / "work",
            "--output",
            tmp_path / "results",
        ]
        options = ["--shorten", "0.01", "--seeds", "1", "2", "--only", "dense", "mote", "moe-llava"]
        return subprocess.run([*command, *options, *more], cwd=ROOT, capture_output=True, text=True, check=False)

    first = run()
    assert first.returncode == 0, first.stderr
    content = json.loads((tmp_path / "results" / "method.json").read_text())
    assert set(content["rows"]) == {row.name for row in ROWS if row.variant in ("dense", "mote", "moe-llava")}
    assert (tmp_path / "results" / "method.png").stat().st_size > 10_000
    (tmp_path / "work" / "seed2" / "mote" / "result.json").unlink()
    assert run().returncode == 0
    assert json.loads((tmp_path / "results" / "method.json").read_text())["rows"] == content["rows"]
    refused = run("--shorten", "0.02")
    assert refused.returncode == 1
    assert "another recipe" in refused.stderr
