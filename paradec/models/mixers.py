"""The kinds of layers that a `RecurrentLM` can have, by the names that configurations give them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from paradec.models.attention_mixer import Attention
from paradec.models.cells.elman import Elman
from paradec.models.cells.gru import GRU
from paradec.models.cells.headwise import HeadwiseCell
from paradec.models.cells.lstm import LSTM
from paradec.models.cells.para_gru import ParaGRU
from paradec.models.cells.para_lstm import ParaLSTM
from paradec.models.cells.slstm import SLSTM
from paradec.models.diagonal import Diagonal
from paradec.models.flash_rnn import FlashRNN
from paradec.models.gla import GLA
from paradec.models.mixer import Mixer
from paradec.models.pararnn import ParaRNN
from paradec.ops.rope import Rope


@dataclasses.dataclass(frozen=True)
class LayerSizes:
    """What a kind of layer may ask for. Recurrences in parallel are as wide as the stream, `width`; others have heads
    of `head_dim`. `kv_heads` and `theta` are those of attention."""

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    theta: float = 10_000.0


def _flash(cell: type[HeadwiseCell]) -> Callable[[LayerSizes], Mixer]:
    return lambda s: FlashRNN(cell(s.heads, s.head_dim))


KINDS: Mapping[str, Callable[[LayerSizes], Mixer]] = {
    "attention": lambda s: Attention(s.heads, s.kv_heads, s.head_dim, Rope(theta=s.theta)),
    "gla": lambda s: GLA(s.heads),
    "diagonal": lambda s: Diagonal(),
    "para_gru": lambda s: ParaRNN(ParaGRU(s.heads, s.width // s.heads)),
    "para_lstm": lambda s: ParaRNN(ParaLSTM(s.heads, s.width // s.heads)),
    "elman": _flash(Elman),
    "lstm": _flash(LSTM),
    "gru": _flash(GRU),
    "slstm": _flash(SLSTM),
}
"""A mixer of each kind, of these sizes."""

CLASSES: Mapping[str, type] = {
    c.__name__: c
    for c in (Attention, GLA, Diagonal, ParaRNN, ParaGRU, ParaLSTM, FlashRNN, Elman, LSTM, GRU, SLSTM, Rope)
}
"""What mixers are and are made of, by the names of the classes, as files of models hold them."""
