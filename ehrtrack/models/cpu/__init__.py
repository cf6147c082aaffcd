"""Layers that compute on CPUs what torch's own do, faster; `ehrtrack.models.device` exchanges them."""

from ehrtrack.models.cpu.attention import SelfAttention as SelfAttention
from ehrtrack.models.cpu.dropout import Dropout as Dropout
from ehrtrack.models.cpu.linear import Linear as Linear
from ehrtrack.models.cpu.linear import multiply as multiply
