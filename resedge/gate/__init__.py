"""What looks at a file from a stranger before anything else does: bytes in, a refusal or nothing out.

Limits are such that every ResNet meets them with room to spare.
"""

from resedge.gate.checkpoint import check_checkpoint as check_checkpoint
from resedge.gate.onnx import check_onnx as check_onnx
from resedge.gate.onnx import parse_onnx as parse_onnx
from resedge.gate.onnx_fields import MAX_ONNX_BYTES as MAX_ONNX_BYTES
from resedge.gate.onnx_fields import check_fields as check_fields
from resedge.gate.safetensors import MAX_RANK as MAX_RANK
from resedge.gate.safetensors import MAX_TENSORS as MAX_TENSORS
from resedge.gate.safetensors import check_safetensors as check_safetensors
from resedge.gate.safetensors import read_safetensors as read_safetensors
from resedge.gate.safetensors import read_safetensors_header as read_safetensors_header
