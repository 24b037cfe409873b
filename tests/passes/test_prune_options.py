import pytest

from obert_compiler.errors import UsageError
from obert_compiler.passes.prune_options import check_sparsity, read_nm, read_override


def test_forms():
    assert read_nm("2of4") == (2, 4)
    assert read_nm("0of8") == (0, 8)
    assert read_override("layer.*.query@0.25") == ("layer.*.query", 0.25)
    assert read_override("a@b@1") == ("a@b", 1.0)


@pytest.mark.parametrize("text", ["2:4", "2of", "of4", "-1of4", "2of4of8", "2.5of4"])
def test_other_forms_of_nm_are_refused(text):
    with pytest.raises(UsageError, match="expected nm as NofM, as in 2of4"):
        read_nm(text)


@pytest.mark.parametrize("text", ["5of4", "0of0"])
def test_n_above_m_is_refused(text):
    with pytest.raises(UsageError, match="N <= M, found"):
        read_nm(text)


@pytest.mark.parametrize("text", ["a", "@0.5", "a@", "a@half"])
def test_other_forms_of_override_are_refused(text):
    with pytest.raises(UsageError, match="PATTERN@SPARSITY"):
        read_override(text)


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf")])
def test_sparsity_outside_its_range_is_refused(value):
    with pytest.raises(UsageError, match="sparsity between 0 and 1, found"):
        check_sparsity("sparsity", value)
    with pytest.raises(UsageError, match="sparsity of override 'a@"):
        read_override(f"a@{value}")
