"""Small models of vectors, tokens and sequences: the zoo's second half."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .zoo_entry import entry
from .zoo_images import Applied

TOKENS = (2, 5, 8)


@entry([7, 6])
def perceptron():
    net = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 6), nn.GELU(), nn.Linear(6, 2))
    return net, torch.randn(3, 4)


@entry([6])
def gated_linear():
    net = nn.Sequential(nn.Linear(4, 12), nn.GLU(), nn.Linear(6, 2))
    return net, torch.randn(3, 4)


@entry([6])
def gated_by_chunk():
    def forward(m, x):
        a, b = m.up(x).chunk(2, -1)
        return m.down(F.silu(a) * b)

    return Applied(forward, up=nn.Linear(4, 12), down=nn.Linear(6, 2)), torch.randn(3, 4)


@entry([6, 5])
def raw_linear():
    def forward(m, x):
        return m.out(F.linear(m.first(x).tanh(), m.weight, m.bias).relu())

    modules = {"first": nn.Linear(4, 6), "weight": torch.randn(5, 6), "bias": torch.randn(5), "out": nn.Linear(5, 2)}
    return Applied(forward, **modules), torch.randn(3, 4)


@entry([6, 5])
def raw_product():
    def forward(m, x):
        return (m.first(x).sigmoid() @ m.a + m.bias).relu() @ m.b

    modules = {"first": nn.Linear(4, 6), "a": torch.randn(6, 5), "bias": torch.randn(5), "b": torch.randn(5, 2)}
    return Applied(forward, **modules), torch.randn(3, 4)


@entry([6, 5])
def einsum_weights():
    def forward(m, x):
        x = torch.einsum("bti,io->bto", x, m.a).sigmoid()
        return torch.einsum("oc,btc->bto", m.c, torch.einsum("oi,bti->bto", m.b, x).relu())

    return Applied(forward, a=torch.randn(4, 6), b=torch.randn(5, 6), c=torch.randn(2, 5)), torch.randn(2, 3, 4)


@entry([4, 12])
def mixer():
    # tokens are mixed by a transposed linear layer: its hidden width, and that of the channels' layers
    def forward(m, x):
        x = x + m.token_out(F.gelu(m.token_in(m.norm1(x).transpose(1, 2)))).transpose(1, 2)
        return m.out((x + m.b(F.gelu(m.a(m.norm2(x))))).mean(1))

    net = Applied(
        forward, norm1=nn.LayerNorm(8), token_in=nn.Linear(5, 4), token_out=nn.Linear(4, 5), norm2=nn.LayerNorm(8),
        a=nn.Linear(8, 12), b=nn.Linear(12, 8), out=nn.Linear(8, 2),
    )  # fmt: skip
    return net, torch.randn(TOKENS)


@entry([12])
def layer_norm_stream():
    # statistics are taken over the stream: only the width inside has a gate
    def forward(m, x):
        x = m.embed(x)
        return m.out(m.norm2(x + m.b(F.gelu(m.a(m.norm(x))))))

    net = Applied(
        forward, embed=nn.Linear(8, 8), norm=nn.LayerNorm(8), a=nn.Linear(8, 12), b=nn.Linear(12, 8),
        norm2=nn.LayerNorm(8), out=nn.Linear(8, 2),
    )  # fmt: skip
    return net, torch.randn(TOKENS)


@entry([12])
def rms_norm_stream():
    def forward(m, x):
        x = m.embed(x)
        h = m.norm(x)
        return m.out(x + m.down(F.silu(m.gate(h)) * m.up(h)))

    net = Applied(
        forward, embed=nn.Linear(8, 8), norm=nn.RMSNorm(8), gate=nn.Linear(8, 12), up=nn.Linear(8, 12),
        down=nn.Linear(12, 8), out=nn.Linear(8, 2),
    )  # fmt: skip
    return net, torch.randn(TOKENS)


class FusedAttention(nn.Module):
    """Queries, keys and values of one layer; how many heads there are is remembered."""

    def __init__(self, width=8, heads=4):
        super().__init__()
        self.h, self.d = heads, width // heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.h, self.d).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1))


class SeparateAttention(nn.Module):
    """Queries, keys and values of three layers, softmax by hand."""

    def __init__(self, width=8, heads=4):
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        q, k, v = (
            f(x).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        weights = (q @ k.transpose(-2, -1) / self.head_dim**0.5).softmax(-1)
        return self.o((weights @ v).transpose(1, 2).flatten(2))


class GroupedQuery(nn.Module):
    """Two heads of queries share those of keys and values."""

    def __init__(self, native):
        super().__init__()
        self.heads, self.shared, self.size, self.native = 4, 2, 3, native
        self.q, self.k, self.v = nn.Linear(8, 12), nn.Linear(8, 6), nn.Linear(8, 6)
        self.o = nn.Linear(12, 8)

    def forward(self, x):
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.heads, self.size).transpose(1, 2)
        k = self.k(x).view(b, n, self.shared, self.size).transpose(1, 2)
        v = self.v(x).view(b, n, self.shared, self.size).transpose(1, 2)
        if not self.native:
            k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.native)
        return self.o(y.transpose(1, 2).reshape(b, n, -1))


@entry([4, 8])
def fused_attention():
    return nn.Sequential(FusedAttention(), nn.Linear(8, 2)), torch.randn(TOKENS)


@entry([4, 4, 12])
def attention_blocks():
    # the sum of the attention's outputs and the inputs reaches a norm: heads and widths alone have gates
    class Block(nn.Module):
        def __init__(self, attention):
            super().__init__()
            self.norm1, self.attention, self.norm2 = nn.LayerNorm(8), attention, nn.LayerNorm(8)
            self.mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))

        def forward(self, x):
            x = x + self.attention(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.attention, self.norm = Block(FusedAttention()), SeparateAttention(), nn.LayerNorm(8)

        def forward(self, x):
            return self.norm(self.attention(self.block(x)) + x)

    return nn.Sequential(Halves(), nn.Linear(8, 2)), torch.randn(TOKENS)


@entry([4])
def separate_attention():
    return nn.Sequential(nn.LayerNorm(8), SeparateAttention(), nn.LayerNorm(8), nn.Linear(8, 2)), torch.randn(TOKENS)


@entry([2])
def grouped_query_repeated():
    return nn.Sequential(nn.LayerNorm(8), GroupedQuery(False), nn.LayerNorm(8), nn.Linear(8, 2)), torch.randn(TOKENS)


@entry([2])
def grouped_query_native():
    return nn.Sequential(nn.LayerNorm(8), GroupedQuery(True), nn.LayerNorm(8), nn.Linear(8, 2)), torch.randn(TOKENS)


@entry([4])
def batched_products():
    # heads within the batch, as bmm wants them
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads, self.size = 4, 3
            self.qkv, self.out = nn.Linear(8, 36), nn.Linear(12, 8)

        def forward(self, x):
            b, n, _ = x.shape
            qkv = self.qkv(x).view(b, n, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
            q, k, v = (part.reshape(-1, n, self.size) for part in qkv.unbind(0))
            y = torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1), v)
            return self.out(y.view(b, -1, n, self.size).transpose(1, 2).reshape(b, n, -1))

    return nn.Sequential(Attention(), nn.LayerNorm(8), nn.Linear(8, 2)), torch.randn(TOKENS)


@entry([4])
def einsum_attention():
    def forward(m, x):
        q, k, v = (torch.einsum("bnc,chd->bnhd", x, w) for w in (m.q, m.k, m.v))
        weights = torch.einsum("bnhd,bmhd->bhnm", q, k).softmax(-1)
        return F.layer_norm(torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2) @ m.o, (8,))

    weights = {name: torch.randn(8, 4, 3) for name in "qkv"}
    return Applied(forward, o=torch.randn(12, 8), **weights), torch.randn(TOKENS)


@entry([4])
def multihead_attention():
    def forward(m, x):
        return m.out(m.norm(x + m.attention(x, x, x)[0]))

    net = Applied(
        forward, attention=nn.MultiheadAttention(8, 4, batch_first=True), norm=nn.LayerNorm(8), out=nn.Linear(8, 2)
    )
    return net, torch.randn(TOKENS)


@entry([2])
def multihead_cross_attention():
    # keys and values of other widths have weights of their own; length before batch
    def forward(m, x, y, z):
        return m.out(m.norm(x + m.attention(x, y, z, need_weights=False)[0]))

    net = Applied(
        forward, attention=nn.MultiheadAttention(8, 2, kdim=6, vdim=5), norm=nn.LayerNorm(8), out=nn.Linear(8, 2)
    )
    return net, (torch.randn(5, 2, 8), torch.randn(4, 2, 6), torch.randn(4, 2, 5))


@entry([4, 10, 4, 10])
def transformer_encoder():
    def forward(m, x):
        return m.out(m.encoder(x).mean(1))

    layer = nn.TransformerEncoderLayer(8, 4, 10, batch_first=True)
    return Applied(forward, encoder=nn.TransformerEncoder(layer, 2), out=nn.Linear(8, 2)), torch.randn(TOKENS)


@entry([2, 2, 10])
def transformer_decoder():
    def forward(m, x, memory):
        mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=x.dtype)
        return m.out(m.layer(x, memory, tgt_mask=mask))

    layer = nn.TransformerDecoderLayer(8, 2, 10, batch_first=True, norm_first=True)
    return Applied(forward, layer=layer, out=nn.Linear(8, 2)), (torch.randn(TOKENS), torch.randn(2, 3, 8))


@entry([8, 6])
def tied_embedding():
    # embedding and output are one matrix: so are the channels that they name
    def forward(m, tokens):
        x = m.embed(tokens)
        return F.linear(x + m.b(m.a(x).relu()), m.embed.weight)

    return Applied(forward, embed=nn.Embedding(11, 8), a=nn.Linear(8, 6), b=nn.Linear(6, 8)), torch.arange(10).view(
        2, 5
    )


@entry([8])
def tied_module():
    # the same, by one Parameter in two modules
    embed, out = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
    out.weight = embed.weight
    return nn.Sequential(embed, nn.Tanh(), out), torch.arange(10).view(2, 5)


@entry([8])
def positional():
    def forward(m, tokens):
        return m.out((m.embed(tokens) + m.position[:, : tokens.shape[1]]).tanh())

    modules = {"embed": nn.Embedding(11, 8), "position": torch.randn(1, 7, 8), "out": nn.Linear(8, 2)}
    return Applied(forward, **modules), torch.arange(10).view(2, 5)


@entry([8, 6])
def class_token():
    def forward(m, x):
        x = m.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([m.token.expand(x.shape[0], -1, -1), x], 1) + m.position
        return m.out((x + m.b(m.a(x).relu()))[:, 0])

    modules = {"patch": nn.Conv2d(3, 8, 4, 4), "token": torch.randn(1, 1, 8), "position": torch.randn(1, 5, 8)}
    return Applied(forward, a=nn.Linear(8, 6), b=nn.Linear(6, 8), out=nn.Linear(8, 2), **modules), torch.randn(
        2, 3, 8, 8
    )


@entry([6, 5])
def recurrent():
    def forward(m, x):
        return m.out(m.lstm(m.embed(x).relu())[0][:, -1])

    net = Applied(forward, embed=nn.Linear(4, 6), lstm=nn.LSTM(6, 5, batch_first=True), out=nn.Linear(5, 2))
    return net, torch.randn(2, 7, 4)


@entry([5])
def recurrent_deep():
    # one size is remembered for both layers and both directions: a unit is one of each
    def forward(m, x):
        y, (h, _) = m.lstm(x)
        return m.out(y.relu()).sum(0) + m.last(h[-1])

    net = Applied(
        forward, lstm=nn.LSTM(4, 5, num_layers=2, bidirectional=True), out=nn.Linear(10, 2), last=nn.Linear(5, 2)
    )
    return net, torch.randn(7, 2, 4)


@entry([6, 5])
def recurrent_gated():
    def forward(m, x):
        return m.out(m.gru(m.embed(x).relu())[0])

    return Applied(forward, embed=nn.Linear(4, 6), gru=nn.GRU(6, 5), out=nn.Linear(5, 2)), torch.randn(7, 2, 4)


@entry([5, 6])
def recurrent_plain():
    def forward(m, x):
        return m.out(m.b(m.a(x)[0])[1][0])

    return Applied(forward, a=nn.RNN(4, 5), b=nn.RNN(5, 6, nonlinearity="relu"), out=nn.Linear(6, 2)), torch.randn(
        7, 2, 4
    )


@entry([6])
def recurrent_given_state():
    # the state comes from outside, so it stays whole; what goes in has gates
    def forward(m, x, h, c):
        return m.out(m.lstm(m.embed(x), (h, c))[0])

    net = Applied(forward, embed=nn.Linear(4, 6), lstm=nn.LSTM(6, 5), out=nn.Linear(5, 2))
    return net, (torch.randn(7, 2, 4), torch.randn(1, 2, 5), torch.randn(1, 2, 5))


@entry([6])
def bilinear_left_dense():
    # the product of two activations mixes both: what it meets stays, the rest has gates
    def forward(m, x):
        a, b = m.a(x), m.b(x)
        return m.out(m.c(torch.bmm(a.transpose(1, 2), b).flatten(1)).relu())

    modules = {"a": nn.Linear(8, 3), "b": nn.Linear(8, 4), "c": nn.Linear(12, 6), "out": nn.Linear(6, 2)}
    return Applied(forward, **modules), torch.randn(TOKENS)


@entry([3, 5])
def shapes_to_and_fro():
    def forward(m, x):
        x = m.a(x).unsqueeze(1).squeeze(1).unflatten(1, (2, -1)).movedim(1, 2)
        return m.c(m.b(x.movedim(2, 1).reshape(x.shape[0], -1)).relu()[..., None].squeeze(-1))

    return Applied(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 5), c=nn.Linear(5, 2)), torch.randn(3, 4)


@entry([6, 4])
def recurrent_projected():
    # what is projected: one size for both layers; hidden units stay, for torch tells projections by their number
    def forward(m, x):
        y, (h, c) = m.lstm(m.embed(x).relu())
        return m.out(y), m.last(h[-1]), m.cell(c[-1].tanh())

    net = Applied(
        forward, embed=nn.Linear(4, 6), lstm=nn.LSTM(6, 5, proj_size=4, num_layers=2, bidirectional=True),
        out=nn.Linear(8, 2), last=nn.Linear(4, 2), cell=nn.Linear(5, 2),
    )  # fmt: skip
    return net, torch.randn(7, 2, 4)


@entry([6, 5])
def cell_long_short():
    def forward(m, x):
        state = None
        for step in x:
            state = m.cell(m.embed(step).relu(), state)
        return m.out(state[0]), m.last(state[1].tanh())

    net = Applied(forward, embed=nn.Linear(4, 6), cell=nn.LSTMCell(6, 5), out=nn.Linear(5, 2), last=nn.Linear(5, 2))
    return net, torch.randn(3, 2, 4)


@entry([5, 6])
def cells_stacked():
    # a GRU's state that the code makes itself, of a size that it remembers, and a plain cell without biases on top
    def forward(m, x):
        a, b = x.new_zeros(x.shape[1], m.hidden), None
        for step in x:
            a = m.lower(step, a)
            b = m.upper(a, b)
        return m.out(b)

    net = Applied(forward, lower=nn.GRUCell(4, 5), upper=nn.RNNCell(5, 6, bias=False), out=nn.Linear(6, 2))
    net.hidden = 5
    return net, torch.randn(3, 2, 4)


@entry([6])
def cell_given_state():
    def forward(m, x, h):
        return m.out(m.cell(m.embed(x), h))

    net = Applied(forward, embed=nn.Linear(4, 6), cell=nn.RNNCell(6, 5, nonlinearity="relu"), out=nn.Linear(5, 2))
    return net, (torch.randn(2, 4), torch.randn(2, 5))


@entry([6, 5, 4])
def packed_sequences():
    # lengths in any order: what is traced are sequences of full length
    def forward(m, x, lengths):
        x = pack_padded_sequence(m.embed(x), lengths, batch_first=True, enforce_sorted=False)
        x, (h, _) = m.lstm(x)
        y, h = m.gru(x, None), h[-1]
        y, lengths = pad_packed_sequence(y[0], batch_first=True, total_length=8)
        return m.out(y), m.last(h), lengths

    net = Applied(
        forward, embed=nn.Linear(4, 6), lstm=nn.LSTM(6, 5, batch_first=True), gru=nn.GRU(5, 4, batch_first=True),
        out=nn.Linear(4, 2), last=nn.Linear(5, 2),
    )  # fmt: skip
    return net, (torch.randn(3, 7, 4), torch.tensor([3, 7, 5]))


class HandNorm(nn.Module):
    """RMSNorm as many write it."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Rotary(nn.Module):
    """Attention of language models: fewer keys than queries, both normalised, and turned by their places."""

    def __init__(self, stored):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, n, bias=False) for n in (16, 8, 8))
        self.norm_q, self.norm_k = nn.RMSNorm(4), HandNorm(4) if stored else nn.LayerNorm(4)
        self.out = nn.Linear(16, 8)
        angles = torch.arange(9)[:, None] / torch.tensor([1.0, 10.0])
        self.stored = stored
        if stored:
            self.register_buffer("cos", torch.cat([angles.cos()] * 2, -1))
            self.register_buffer("sin", torch.cat([angles.sin()] * 2, -1))

    def turned(self, x):
        if self.stored:
            cos, sin = self.cos[: x.shape[2]], self.sin[: x.shape[2]]
        else:
            angles = torch.arange(x.shape[2], dtype=x.dtype)[:, None] / torch.tensor([1.0, 10.0], dtype=x.dtype)
            cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    def forward(self, x):
        q, k, v = (part(x).unflatten(-1, (-1, 4)).transpose(1, 2) for part in (self.q, self.k, self.v))
        q, k = self.turned(self.norm_q(q)), self.turned(self.norm_k(k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.out(y.transpose(1, 2).flatten(2))


@entry([2, 7])
def rotary_attention():
    # heads are whole: turning and normalising acts within each
    def forward(m, x):
        x = x + m.attention(x)
        return m.out(m.a(x).relu())

    return Applied(forward, attention=Rotary(False), a=nn.Linear(8, 7), out=nn.Linear(7, 2)), torch.randn(TOKENS)


@entry([2, 7])
def rotary_attention_stored():
    def forward(m, x):
        x = x + m.attention(x)
        return m.out(m.a(x).relu())

    return Applied(forward, attention=Rotary(True), a=nn.Linear(8, 7), out=nn.Linear(7, 2)), torch.randn(TOKENS)
