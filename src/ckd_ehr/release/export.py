"""A trained student as an ONNX graph, calibration and signed evidence inside.

In: a student and its Platt scaling. Out: one graph for any batch and length, from `input_ids`,
`attention_mask` and `concept_index` (batch, tokens) to `probabilities` (batch, labels) and
`evidence` (batch, labels, 1 + tokens) in calibrated log-odds, the reading state first. Ignores:
int8, and where the graph is kept.
"""

import onnx
import torch
from torch import Tensor, nn

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.learning.scoring import PlattScaling
from ckd_ehr.learning.student_model import StudentModel
from ckd_ehr.release.quiet import quiet
from ckd_ehr.release.session import FUSED, INPUTS, INTERCEPT, OUTPUTS, SLOPE, runtime_operators

OPSET = 23  # the first with the operator Attention, which needs no fusion afterwards
MOST_PATIENTS = 4096  # in a batch


class CalibratedStudent(nn.Module):
    """A student whose outputs are calibrated.

    Args:
        student: as trained.
        scaling: of its logits.
    """

    def __init__(self, student: StudentModel, scaling: PlattScaling) -> None:
        super().__init__()
        self.student = student
        self.register_buffer(SLOPE, torch.tensor(scaling.slope, dtype=torch.float32))
        self.register_buffer(INTERCEPT, torch.tensor(scaling.intercept, dtype=torch.float32))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, concept_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Probabilities (batch, labels), evidence (batch, labels, 1 + tokens)."""
        output = self.student(input_ids, attention_mask, concept_index)
        slope, intercept = self.get_buffer(SLOPE), self.get_buffer(INTERCEPT)
        probabilities = torch.sigmoid(slope * output.logits + intercept)
        return probabilities, slope[:, None] * output.evidence


def export_student(
    student: StudentModel, scaling: PlattScaling, *, most_tokens: int
) -> onnx.ModelProto:
    """The fp32 graph of a student.

    Args:
        student: as trained.
        scaling: of its logits.
        most_tokens: that a text may have.

    Raises:
        CkdEhrError: an encoder whose layers do not all have fused attention in ONNX Runtime.
    """
    student.set_attn_implementation("sdpa")  # what becomes the operator Attention
    model = CalibratedStudent(student, scaling).eval()
    example = torch.ones(2, min(8, most_tokens), dtype=torch.int64)
    sizes = {
        0: torch.export.Dim("batch", min=1, max=MOST_PATIENTS),
        1: torch.export.Dim("tokens", min=2, max=most_tokens),
    }
    with quiet("torch.onnx"):
        program = torch.onnx.export(
            model,
            tuple(example.clone() for _ in INPUTS),
            dynamo=True,
            opset_version=OPSET,
            input_names=INPUTS,
            output_names=OUTPUTS,
            dynamic_shapes=(sizes,) * len(INPUTS),
            verbose=False,
        )
    assert program is not None
    graph: onnx.ModelProto = program.model_proto
    for node in graph.graph.node:
        del node.metadata_props[:]  # names files of the machine that exported it
    layers = int(student.config.backbone_config.num_hidden_layers)
    fused = runtime_operators(graph)[FUSED]
    if fused != layers:
        raise CkdEhrError(
            f"student.model: of {layers} layers {fused} have fused attention in ONNX Runtime; "
            "release a student of another encoder (BERT, RoBERTa and ELECTRA have it)"
        )
    return graph
