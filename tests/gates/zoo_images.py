"""Small models of images, volumes and signals: the zoo's first half. Each entry says how large its groups are."""

import torch
from torch import nn
from torch.nn import functional as F

from .zoo_entry import entry


class Applied(nn.Module):
    """Modules by name and a function of them and the inputs."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            if isinstance(module, torch.Tensor) and not isinstance(module, nn.Parameter):
                module = nn.Parameter(module)
            setattr(self, name, module)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def conv_bn(i, o, k=3, **options):
    return nn.Sequential(nn.Conv2d(i, o, k, padding=k // 2, bias=False, **options), nn.BatchNorm2d(o))


def head(channels):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3))


IMAGE = (2, 3, 8, 8)


@entry([6, 7])
def plain_chain():
    net = nn.Sequential(conv_bn(3, 6), nn.ReLU(), nn.MaxPool2d(2), conv_bn(6, 7), nn.ReLU(), head(7))
    return net, torch.randn(IMAGE)


@entry([5, 6])
def flatten_to_linear():
    # every unit of the last convolution has 16 columns of the linear layer
    net = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(80, 6), nn.Tanh(), nn.Linear(6, 2))
    return net, torch.randn(IMAGE)


@entry([5])
def view_with_batch():
    def forward(m, x):
        x = m.conv(x).relu()
        return m.out(x.view(x.size(0), -1))

    return Applied(forward, conv=nn.Conv2d(3, 5, 3, 2, 1), out=nn.Linear(80, 2)), torch.randn(IMAGE)


@entry([4, 8, 4])
def residual_post_activation():
    def forward(m, x):
        x = F.relu(m.stem(x))
        for a, b in ((m.a1, m.b1), (m.a2, m.b2)):
            x = F.relu(x + b(F.relu(a(x))))
        return m.head(x)

    blocks = {"a1": conv_bn(8, 4), "b1": conv_bn(4, 8), "a2": conv_bn(8, 4), "b2": conv_bn(4, 8)}
    return Applied(forward, stem=conv_bn(3, 8), head=head(8), **blocks), torch.randn(IMAGE)


@entry([8, 4])
def residual_pre_activation():
    def forward(m, x):
        x = m.stem(x)
        x = x + m.conv2(F.relu(m.norm2(m.conv1(F.relu(m.norm1(x))))))
        return m.head(F.relu(m.norm3(x)))

    net = Applied(
        forward, stem=nn.Conv2d(3, 8, 3, padding=1), norm1=nn.BatchNorm2d(8), conv1=nn.Conv2d(8, 4, 3, padding=1),
        norm2=nn.BatchNorm2d(4), conv2=nn.Conv2d(4, 8, 3, padding=1), norm3=nn.BatchNorm2d(8), head=head(8),
    )  # fmt: skip
    return net, torch.randn(IMAGE)


@entry([6, 10, 5])
def residual_projection():
    def forward(m, x):
        x = F.relu(m.stem(x))
        return m.head(F.relu(m.shortcut(x) + m.b(F.relu(m.a(x)))))

    modules = {"stem": conv_bn(3, 6), "a": conv_bn(6, 5, stride=2), "b": conv_bn(5, 10)}
    shortcut = nn.Sequential(nn.Conv2d(6, 10, 1, 2, bias=False), nn.BatchNorm2d(10))
    return Applied(forward, shortcut=shortcut, head=head(10), **modules), torch.randn(IMAGE)


@entry([4, 5])
def residual_option_a():
    # the shortcut is padded with zero channels: those positions stay, the four in the middle are the stem's
    def forward(m, x):
        x = F.relu(m.stem(x))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return m.head(F.relu(shortcut + m.b(F.relu(m.a(x)))))

    modules = {"stem": conv_bn(3, 4), "a": conv_bn(4, 5, stride=2), "b": conv_bn(5, 8)}
    return Applied(forward, head=head(8), **modules), torch.randn(IMAGE)


@entry([4, 5, 6])
def concatenated():
    # DenseNet: everything before is read by everything after, at an offset
    def forward(m, x):
        x = m.stem(x)
        x = torch.cat([x, m.a(F.relu(m.norm_a(x)))], 1)
        x = torch.cat([m.b(F.relu(m.norm_b(x))), x], 1)
        return m.head(F.relu(m.norm(x)))

    net = Applied(
        forward, stem=nn.Conv2d(3, 4, 3, padding=1), norm_a=nn.BatchNorm2d(4), a=nn.Conv2d(4, 5, 3, padding=1),
        norm_b=nn.BatchNorm2d(9), b=nn.Conv2d(9, 6, 3, padding=1), norm=nn.BatchNorm2d(15), head=head(15),
    )  # fmt: skip
    return net, torch.randn(IMAGE)


@entry([8, 4])
def squeeze_excite():
    def forward(m, x):
        x = m.conv(x).relu()
        return m.head(x * torch.sigmoid(m.up(F.relu(m.down(x.mean((2, 3), keepdim=True))))))

    modules = {"conv": nn.Conv2d(3, 8, 3, padding=1), "down": nn.Conv2d(8, 4, 1), "up": nn.Conv2d(4, 8, 1)}
    return Applied(forward, head=head(8), **modules), torch.randn(IMAGE)


@entry([8, 12])
def depthwise_separable():
    net = nn.Sequential(conv_bn(3, 8), nn.ReLU6(), conv_bn(8, 8, groups=8), nn.ReLU6(), conv_bn(8, 12, 1), head(12))
    return net, torch.randn(IMAGE)


@entry([6])
def depthwise_multiplier():
    # each of the six goes in once and comes out twice
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 12, 3, groups=6), nn.Sigmoid(), nn.Conv2d(12, 2, 1))
    return net, torch.randn(IMAGE)


@entry([4, 6])
def grouped():
    # both groups of a convolution keep the same places, so that groups stay of one size
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=2), nn.ReLU(), nn.Conv2d(12, 2, 1))
    return net, torch.randn(IMAGE)


@entry([2, 3])
def channel_shuffled():
    def forward(m, x):
        x = m.a(x).relu()
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return m.c(m.b(x).sigmoid())

    modules = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 6, 3, padding=1, groups=2), "c": nn.Conv2d(6, 2, 1)}
    return Applied(forward, **modules), torch.randn(IMAGE)


@entry([4])
def shuffled_halves():
    # ShuffleNet's second version: one half is convolved, the other passes, and they are interleaved
    def forward(m, x):
        left, right = m.stem(x).relu().chunk(2, 1)
        x = torch.cat([left, m.b(right).relu()], 1)
        b, c, h, w = x.shape
        return m.head(x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, -1, h, w))

    return Applied(forward, stem=nn.Conv2d(3, 8, 1), b=nn.Conv2d(4, 4, 3, padding=1), head=head(8)), torch.randn(IMAGE)


@entry([6, 3])
def pixel_shuffled():
    # four channels in a row become one
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 12, 3, padding=1), nn.PixelShuffle(2), nn.Sigmoid(),
        nn.Conv2d(3, 2, 3, padding=1),
    )  # fmt: skip
    return net, torch.randn(IMAGE)


@entry([3])
def pixel_unshuffled():
    net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.PixelUnshuffle(2), nn.Conv2d(12, 2, 1))
    return net, torch.randn(IMAGE)


@entry([6, 5])
def transposed_convolutions():
    net = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.ConvTranspose2d(6, 5, 3, 2), nn.ELU(), nn.Conv2d(5, 2, 1))
    return net, torch.randn(IMAGE)


@entry([3, 4])
def transposed_grouped():
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 8, 3, groups=2), nn.Sigmoid(), nn.Conv2d(8, 2, 1)
    )
    return net, torch.randn(IMAGE)


@entry([5])
def transposed_depthwise():
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Sigmoid(), nn.ConvTranspose2d(5, 5, 2, 2, groups=5), nn.Conv2d(5, 2, 1))
    return net, torch.randn(IMAGE)


@entry([5, 6])
def signal():
    net = nn.Sequential(
        nn.Conv1d(2, 5, 3, padding=1), nn.BatchNorm1d(5), nn.LeakyReLU(), nn.AvgPool1d(2), nn.Conv1d(5, 6, 3),
        nn.PReLU(6), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(6, 2),
    )  # fmt: skip
    return net, torch.randn(2, 2, 12)


@entry([4, 5])
def volume():
    net = nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(4, 5, 3, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(5, 2),
    )  # fmt: skip
    return net, torch.randn(2, 1, 4, 4, 4)


@entry([4])
def reused():
    # one module at two places: what it makes and what it reads are the same channels
    def forward(m, x):
        x = m.stem(x).relu()
        return m.out(m.again(m.again(x).relu()).sigmoid())

    modules = {"stem": nn.Conv2d(3, 4, 3), "again": nn.Conv2d(4, 4, 3, padding=1), "out": nn.Conv2d(4, 2, 1)}
    return Applied(forward, **modules), torch.randn(IMAGE)


@entry([6, 5])
def constant_at_border():
    # f(0) is not 0 and the next convolution pads with zeros: a closed channel has no border either
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.Sigmoid(), nn.Conv2d(6, 5, 3, padding=1), nn.Softplus(),
        nn.Conv2d(5, 2, 3, padding=1),
    )  # fmt: skip
    return net, torch.randn(IMAGE)


@entry([4, 3])
def group_norms():
    # channels of one group of a GroupNorm share statistics: they go together
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 6, 3), nn.GroupNorm(3, 6), nn.SiLU(),
        nn.Conv2d(6, 2, 1),
    )  # fmt: skip
    return net, torch.randn(IMAGE)


@entry([6, 5])
def instance_norms():
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6, affine=True), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.InstanceNorm2d(5),
        nn.Sigmoid(), nn.Conv2d(5, 2, 1),
    )  # fmt: skip
    return net, torch.randn(IMAGE)


@entry([4, 6, 5, 4])
def unet():
    def forward(m, x):
        a = m.a(x).relu()
        b = m.b(F.max_pool2d(a, 2)).relu()
        c = F.interpolate(m.c(b).relu(), scale_factor=2, mode="bilinear")
        d = m.d(torch.cat([a, c], 1)).relu()
        return m.out(F.interpolate(d, scale_factor=2, mode="nearest"))

    def conv(i, o):
        return nn.Conv2d(i, o, 3, padding=1)

    return Applied(forward, a=conv(3, 4), b=conv(4, 6), c=conv(6, 5), d=conv(9, 4), out=conv(4, 2)), torch.randn(IMAGE)


@entry([5, 4])
def frozen():
    net = nn.Sequential(conv_bn(3, 5), nn.ReLU(), conv_bn(5, 4), nn.ReLU(), head(4)).requires_grad_(False)
    return net, torch.randn(IMAGE)


@entry([4])
def several_outputs():
    def forward(m, x):
        x = m.a(x).relu()
        y = m.b(x).relu()
        # the sum over channels has no weights that could leave one out: b stays whole
        return {"first": m.first(x), "rest": (m.second(y), y.mean((2, 3)).sum(1))}

    modules = {"a": nn.Conv2d(3, 4, 3), "b": nn.Conv2d(4, 5, 3), "first": nn.Conv2d(4, 2, 1)}
    return Applied(forward, second=nn.Conv2d(5, 2, 1), **modules), torch.randn(IMAGE)


@entry([5, 6])
def norm_after_flatten():
    net = nn.Sequential(
        nn.Conv2d(3, 5, 3, 2, 1), nn.Flatten(), nn.BatchNorm1d(80), nn.Linear(80, 6), nn.BatchNorm1d(6), nn.ReLU(),
        nn.Linear(6, 2),
    )  # fmt: skip
    return net, torch.randn(IMAGE)


@entry([4, 8])
def inverted_residual():
    # MobileNet: narrow stream, wide depthwise inside
    def forward(m, x):
        x = m.stem(x)
        return m.head(x + m.project(F.hardswish(m.depth(F.hardswish(m.expand(x))))))

    modules = {"expand": conv_bn(4, 8, 1), "depth": conv_bn(8, 8, groups=8), "project": conv_bn(8, 4, 1)}
    return Applied(forward, stem=conv_bn(3, 4), head=head(4), **modules), torch.randn(IMAGE)


@entry([6])
def maximum_of_two():
    # maxout of two convolutions, spatially padded by reflection, and a learned scale of channels
    def forward(m, x):
        x = torch.maximum(m.a(x), m.b(x)) * m.scale
        return m.c(F.pad(x, (1, 1, 1, 1), mode="reflect"))

    modules = {"a": nn.Conv2d(3, 6, 3), "b": nn.Conv2d(3, 6, 3), "c": nn.Conv2d(6, 2, 3)}
    return Applied(forward, scale=torch.randn(1, 6, 1, 1), **modules), torch.randn(IMAGE)


@entry([6])
def padded_corner():
    # only the padding is read: it has as many channels as what was padded
    def forward(m, x):
        return m.out(F.pad(m.conv(x), (1, 1, 1, 1))[:, :, 0, :].mean(2) + m.conv(x)[:, :, 0, 0])

    return Applied(forward, conv=nn.Conv2d(3, 6, 3), out=nn.Linear(6, 2)), torch.randn(IMAGE)
