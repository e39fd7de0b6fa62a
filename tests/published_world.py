"""A benchmark `quiz` from outside the package, with a published protocol of its own."""

import json

from tiny_llava import facts

from manu_jax.data import answer_metrics as metrics
from manu_jax.data.benchmarks import BenchmarkFormat
from manu_jax.data.probes import Aggregate, Probe, ProbeMetric, PublishedProtocol, Sampling
from manu_jax.data.prompts import question_prompt
from manu_jax.data.record import Benchmark, Person, Question
from manu_jax.types import ManuError

FORGET, RETAIN = 2, 3


def write(folder):
    """Write the one file of the benchmark: {name: answer} of tiny_llava's people."""
    folder.mkdir(parents=True, exist_ok=True)
    people = {fact.name: fact.answer for fact in facts(FORGET + RETAIN)}
    (folder / "quiz.json").write_text(json.dumps(people))


def read(folder, section, seed):
    path = folder / "quiz.json"
    if not path.exists():
        raise ManuError(f"{path}: no such file.")
    sets = {"forget": (), "retain": ()}
    probes = []
    known = zip(json.loads(path.read_text()).values(), facts(FORGET + RETAIN), strict=True)
    for number, (answer, fact) in enumerate(known):
        where = "forget" if number < FORGET else "retain"
        question = Question("generation", "text", f"Where is {fact.name}?", answer, "residence")
        person = Person(fact.person_id, fact.name, (fact.image,), {}, (fact,), (question,))
        sets[where] += (person,)
        probes += probes_of(fact, where, answer)
    return Benchmark(sets, {}, probes=tuple(probes))


def probes_of(fact, where, answer):
    for modality in ("image", "text"):
        yield Probe(
            "open",
            where,
            modality,
            fact.person_id,
            fact.key,
            "Where is this person?" if modality == "image" else f"Where is {fact.name}?",
            answer,
            image=fact.image if modality == "image" else None,
            paraphrased=(f"in {answer}",),
            perturbed=("Rome", "a baker"),
            new_tokens=5,
            has_likelihood=True,
            details={"rank": 1},
        )
    yield Probe(
        "drawn",
        where,
        "text",
        fact.person_id,
        fact.key,
        f"Tell of {fact.name}.",
        answer,
        keywords=(answer,),
        new_tokens=4,
        sampling=Sampling(2, temperature=1.5, top_p=0.9),
    )


def prompt(probe, template):
    return template.prompt(f"QUIZ {probe.question}", probe.modality)


def share_drawn(response):
    """The share of the drawn answers that hold the truth."""
    answers = response.answers
    return sum(response.probe.answer in answer for answer in answers) / len(answers)


def utility(records, retrained):
    kept = {"sets": ("retain", "unseen")}
    return metrics.model_utility([metrics.mean_of(records, "probability", **kept)])


def quality(records, retrained):
    ratios = [metrics.values_of(side, "ratio", sets=("forget",)) for side in (records, retrained)]
    return metrics.forget_quality(*ratios)


PROTOCOL = PublishedProtocol(
    prompt,
    {
        "rouge": ProbeMetric(metrics.rouge_l_recall, "ROUGE-L recall", "0 to 1", True, ("open",)),
        "probability": ProbeMetric(metrics.probability, "probability", "0 to 1", True, ("open",)),
        "ratio": ProbeMetric(metrics.truth_ratio, "truth ratio", "0: knows", False, ("open",)),
        "drawn": ProbeMetric(share_drawn, "drawn answers", "% right", True, ("drawn",)),
    },
    source="Quiz & Co. (2026)",
    aggregates={
        "utility": Aggregate(utility, "model utility", "0 to 1", True),
        "quality": Aggregate(quality, "forget quality", "p", True, resampled=False),
    },
    differs=("Answers are short.",),
    title="QuizBench",
)
FORMAT = BenchmarkFormat(read, question_prompt, shares=(), published=PROTOCOL)
