"""Operations that the time model counts, against the project's accounting of useful ones, where the two must meet."""

from dataclasses import replace

import pytest

from nvlm_train.config.compose import compose
from nvlm_train.config.layers import cross_layers
from nvlm_train.config.split import padded_size
from nvlm_train.model.accounting import trained_components, useful_flops
from nvlm_train.planning.cost import Place
from nvlm_train.planning.rates import ATTENTION_BACKWARD, Machine
from nvlm_train.planning.row_time import row_costs
from nvlm_train.planning.samples import sample_of
from nvlm_train.planning.step import row_of

PLAIN = Machine(1e12, 1e12, 1e12, 0.0)      # blocks of one token: attention's pairs are exactly those that are needed


def done(run, tensor=1, **sizes):
    """(parts of one full row of one sample done by all tensor-parallel ranks, that sample)."""
    sample = sample_of(run, sizes.get("tiles", 3), 40, 20)
    row = row_of([sample], sample.tokens)
    return row_costs(run, Place(PLAIN, tensor), row).operations.scaled(tensor), sample


def attention(run, sample) -> float:
    """Forward of causal attention over the sample."""
    m = run.model.language
    return m.layers * 4 * m.heads * m.head_dim * sample.tokens * (sample.tokens + 1) / 2


@pytest.mark.parametrize("architecture", ["nvlm_d", "nvlm_x", "nvlm_h", "flamingo", "llama3v", "internvl2"])
@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_a_full_row_does_what_is_useful_and_attention_half_a_forward_more(architecture, stage):
    """Flash attention's backward makes its scores anew: 2.5 times the forward where 2 are useful. Cross-attention's queries are
    made of every token of the row, also of those that read nothing: here every token reads."""
    run = compose([f"recipe={architecture}_tiny", f"stage={stage}"])[0]
    run = replace(run, model=replace(run.model, recompute="none", tags=replace(run.model.tags, kind="none")))
    parts, sample = done(run)
    trained = trained_components(run.model, run.train)
    useful = useful_flops(run.model, trained, [sample])
    again = ATTENTION_BACKWARD - 2
    vision = run.model.vision
    tokens = (vision.tile_size // vision.patch) ** 2 + 1
    seen = sample.tiles * vision.layers * 4 * tokens**2 * vision.hidden
    patches = sample.tiles * (tokens - 1) * 2 * 3 * vision.patch**2 * vision.hidden     # pixels need no gradient
    assert parts.vision == pytest.approx(useful.vision + (again * seen - patches) * ("vision" in trained))
    if not run.model.connector.resampler_tokens:        # its backward is told apart by layers, which it is too small for here
        assert parts.connector == pytest.approx(useful.connector)
    extra = parts.language - useful.language
    if run.model.architecture != "nvlm_x" or "language" in trained:
        assert extra == pytest.approx(again * attention(run, sample))
    else:
        assert 0 <= extra < again * attention(run, sample)     # below the first cross-attention nothing is handed down
    x, m = run.model.cross_attention, run.model.language
    read = 4 * (x.heads or m.heads) * m.head_dim * sample.pairs
    counted = parts.cross_attention - useful.cross_attention
    assert counted == pytest.approx(again * read * len(cross_layers(run.model)), abs=1)


def test_recomputation_adds_what_it_does_again():
    run = compose(["recipe=nvlm_d_tiny", "stage=sft"])[0]

    def language(recompute):
        return done(replace(run, model=replace(run.model, recompute=recompute)))

    (none, sample), (selective, _), (full, _) = language("none"), language("selective"), language("full")
    assert selective.language - none.language == pytest.approx(attention(run, sample))
    m = run.model.language
    linears = 2 * sample.tokens * m.layers * (m.hidden * (2 * m.heads + 2 * m.kv_heads) * m.head_dim + 3 * m.hidden * m.ffn)
    assert full.language - none.language == pytest.approx(attention(run, sample) + linears)


def test_dummy_heads_are_work_too():
    """InternViT-6B's 25 heads are 32 at tensor parallel 8: attention and its four linears grow by 32 / 25, the MLP does not. Patches
    are cut by every rank for itself."""
    run = compose(["recipe=nvlm_d_72b", "stage=sft"])[0]
    one, eight = done(run)[0].vision, done(run, 8)[0].vision
    v, tokens = run.model.vision, 1025
    attends = 3 * v.layers * (8 * tokens * v.hidden**2 + 4 * tokens**2 * v.hidden)
    patches = 3 * 1024 * 2 * 3 * v.patch**2 * v.hidden
    assert eight - one == pytest.approx(attends * (padded_size(v.heads, 8) / v.heads - 1) + 7 * patches)
