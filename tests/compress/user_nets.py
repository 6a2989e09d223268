"""Networks as users write them."""

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """Convolutions with bias, a 1x1 shortcut without BN, functional relu."""

    def __init__(self, cin, cout, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1)
        self.skip = nn.Conv2d(cin, cout, 1, stride) if stride > 1 or cin != cout else None

    def forward(self, x):
        out = self.conv2(F.relu(self.conv1(x)))
        out += x if self.skip is None else self.skip(x)
        return F.relu_(out)


class Plain(nn.Module):
    """``view`` with the batch size; an optional argument."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(Block(8, 8), Block(8, 16, 2), Block(16, 16))
        self.fc = nn.Linear(16, 5)

    def features(self, x):
        return self.body(self.stem(x))

    def forward(self, x, scale=None):
        x = F.adaptive_avg_pool2d(self.features(x), 1)
        x = self.fc(x.view(x.size(0), -1))
        return x if scale is None else x * scale


class Heads(Plain):
    """Several outputs in a dict, one of them a map; a hidden linear layer."""

    def __init__(self):
        super().__init__()
        self.map = nn.Conv2d(16, 4, 1)
        self.hidden = nn.Linear(16, 12)
        self.box = nn.Linear(12, 4)

    def forward(self, x):
        x = self.features(x)
        pooled = x.mean([2, 3])
        return {"logits": self.fc(pooled), "map": self.map(x), "box": (self.box(F.relu(self.hidden(pooled))), None)}


class Backbone(Plain):
    """No classifier: feature maps of two depths."""

    def forward(self, x):
        x = self.body[0](self.stem(x))
        return [x, self.body[2](self.body[1](x))]


class FlattenedMap(Plain):
    """The classifier reads every pixel of an 8x8 map."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16 * 8 * 8, 5)

    def forward(self, x):
        return self.fc(torch.flatten(self.features(x), 1))


class OptionA(nn.Module):
    """Shortcuts by F.pad in the forward, and by concatenating zeros made of the input."""

    def __init__(self, how="pad"):
        super().__init__()
        self.how = how
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.conv4, self.bn4 = nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)) + x)
        short = x[:, :, ::2, ::2]
        short = F.pad(short, (0, 0, 0, 0, 4, 4)) if self.how == "pad" else torch.cat((short, short.mul(0)), 1)
        x = F.relu(self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x))))) + short)
        return self.head(x.mean(dim=(2, 3)))


class PreActivation(nn.Module):
    """The stream passes a BN and a relu before each reader (He et al. 2016)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(4))
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(4))
        self.last, self.fc = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        for i in (0, 2):
            y = self.convs[i](self.norms[i](x).relu())
            x = x + self.convs[i + 1](torch.relu(self.norms[i + 1](y)))
        return self.fc(self.last(x).relu().mean((2, 3)))


class SqueezeExcite(Plain):
    """A gate by sigmoid, in the two ways it is usually written; a gate over pixels; depthwise convolution."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, 8), nn.Linear(8, 16)
        self.squeeze, self.excite = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.pixel = nn.Conv2d(16, 1, 1)
        self.deep = nn.Conv2d(16, 32, 3, padding=1, groups=16)
        self.fc = nn.Linear(32, 5)

    def forward(self, x):
        x = self.features(x)
        b, c, _, _ = x.size()
        gate = torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean([2, 3]))))).view(b, c, 1, 1)
        x = x * gate.expand_as(x)
        x = x * self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))).sigmoid()
        x = self.deep(x * self.pixel(x).sigmoid())
        return self.fc(F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1))


class Dense(Plain):
    """Concatenation of what the blocks wrote, normalised and read together."""

    def __init__(self):
        super().__init__()
        self.norm, self.mix = nn.BatchNorm2d(24), nn.Conv2d(24, 16, 3, padding=1)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([F.max_pool2d(x, 2), self.body[1](x)], dim=1)
        return self.fc(self.mix(F.relu(self.norm(x))).amax((2, 3)))


class Shared(nn.Module):
    """One convolution called twice, and one known under two names."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.one = self.other = nn.Conv2d(8, 12, 3, padding=1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem(x)
        x = self.twice(self.twice(x).relu()).relu()
        return self.fc((self.one(x) + self.other(x.abs())).mean((2, 3)))


class FixedView(Plain):
    """The number of channels is written into the forward."""

    def forward(self, x):
        return self.fc(F.adaptive_avg_pool2d(self.features(x), 1).view(-1, 16))


class Scaled(Plain):
    """A parameter with one value a channel (layer scale), and a group norm."""

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(8, 1, 1))
        self.norm = nn.GroupNorm(4, 16)

    def forward(self, x):
        x = self.body[0](self.stem(x) * self.gamma)
        return self.fc(self.norm(self.body[1](x)).mean((2, 3)))


NETS = {
    "plain": Plain,
    "heads": Heads,
    "backbone": Backbone,
    "flattened map": FlattenedMap,
    "pad": OptionA,
    "cat zeros": lambda: OptionA("cat"),
    "pre-activation": PreActivation,
    "squeeze-excite": SqueezeExcite,
    "dense": Dense,
    "shared": Shared,
    "fixed view": FixedView,
    "scaled": Scaled,
}


def lively(net: nn.Module, seed: int = 0) -> nn.Module:
    """``net`` with BN statistics and affine parameters that are nothing like the identity, in eval mode."""
    torch.manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()
