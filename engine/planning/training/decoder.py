"""Counts a decoder's parameters and FLOPs.

Legend: D width, F width of the MLP, N query heads, M KV heads, H head size, V vocabulary, L blocks,
S tokens of a sequence, e bytes per element.
"""

from __future__ import annotations

from dataclasses import dataclass

from longtake.configs.decoders import DecoderConfig


@dataclass(frozen=True)
class Decoder:
    """The arithmetic of one decoder.

    Args:
        config: Its shape.
    """

    config: DecoderConfig

    @property
    def width(self) -> int:
        """D."""
        return self.config.hidden_size

    @property
    def mlp_width(self) -> int:
        """F."""
        return self.config.intermediate_size

    @property
    def query_width(self) -> int:
        """Elements of all query heads of a token: N H."""
        return self.config.num_attention_heads * self.config.head_dim

    @property
    def kv_width(self) -> int:
        """Elements of all heads of K, or of V, of a token: M H."""
        return self.config.num_key_value_heads * self.config.head_dim

    @property
    def block_matrices(self) -> int:
        """Parameters of one block's matrices: those of q, k, v and the output, and the MLP's."""
        attention = 2 * self.query_width + 2 * self.kv_width
        return self.width * (attention + 3 * self.mlp_width)

    @property
    def block_parameters(self) -> int:
        """Parameters of one block, its two norms included."""
        return self.block_matrices + 2 * self.width

    @property
    def vocabulary_parameters(self) -> int:
        """Parameters of the embedding; the output layer has as many."""
        return self.config.vocab_size * self.width

    @property
    def parameters(self) -> int:
        """All parameters."""
        blocks = self.config.num_hidden_layers * self.block_parameters
        return blocks + self.stage_vocabulary(1) + self.width

    def stage_parameters(self, stages: int) -> int:
        """Parameters of the largest of a number of pipeline stages."""
        if stages == 1:
            return self.parameters
        return self.stage_layers(stages) * self.block_parameters + self.stage_vocabulary(stages)

    def stage_vocabulary(self, stages: int) -> int:
        """Parameters of the embedding and the output layer in the largest of a number of stages:
        both, or one if they are tied or on different stages."""
        copies = 1 if self.config.tie_word_embeddings or stages > 1 else 2
        return copies * self.vocabulary_parameters

    def stage_layers(self, stages: int) -> int:
        """Blocks of the largest of a number of pipeline stages."""
        return -(-self.config.num_hidden_layers // stages)

    def forward_flops(self, sequence: int) -> float:
        """FLOPs of one sequence's forward pass, of which the causal mask leaves half of
        attention: 2 S (L x matrices + V D) + 2 S² N H L."""
        config = self.config
        matrices = config.num_hidden_layers * self.block_matrices + self.vocabulary_parameters
        attention = 2 * sequence**2 * self.query_width * config.num_hidden_layers
        return 2 * sequence * matrices + attention

    def model_flops(self, sequence: int) -> float:
        """FLOPs of one sequence's training step, as model FLOPs utilization counts them:
        three times :meth:`forward_flops`, without recomputation."""
        return 3 * self.forward_flops(sequence)
