"""Ids + the arrays of all tasks -> logits of all tasks on one backbone: the computation of a multi-task bundle.

The token type of an id names its task: 2 x segment + the backbone's own token type. Segment 0 is shared by all tasks,
segment t + 1 belongs to task t. The tokenizer's template sets token types, so the graph has the inputs of an ordinary
text classifier. Letters for shapes are those of classifier.py, and `t` tasks; `c` is the largest number of labels.
"""

import torch
from torch import Tensor, nn

from ptexport.toolkit.models.classifier import PromptClassifier, cache_of, first_of_largest


class MultitaskClassifier(nn.Module):
    """Computes the logits of several tasks.

    Args:
        one: computes the logits of one task.
        blocks: whether one row may hold tokens of several tasks: shared tokens first, then each task's own. A task's
            tokens attend to the shared tokens and to themselves, and have the position ids that they have alone. Needs
            a causal model that is read at the last token, whose sliding window, if it has one, is at least as long as
            a row. Without `blocks` a row belongs to one task.
    """

    def __init__(self, one: PromptClassifier, *, blocks: bool) -> None:
        super().__init__()
        self.one = one
        self.blocks = blocks

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        prompt_embeddings: Tensor,
        label_weights: Tensor,
        label_bias: Tensor,
        prefix_kv: Tensor | None = None,
        prefix_mask: Tensor | None = None,
    ) -> Tensor:
        """Compute the logits of every task.

        Args:
            input_ids: int64 [b, s]; an id from `vocab` on is a row of `prompt_embeddings`.
            attention_mask: int64 [b, s]; 0 on padding, on either side.
            token_type_ids: int64 [b, s]; 2 x segment + token type.
            prompt_embeddings: float [p, e], of all tasks.
            label_weights: float [t, c, h]; any value past the labels of a task.
            label_bias: float [t, c]; -inf past the labels of a task.
            prefix_kv: float [l, 2, t, k, n, d], padded on the left; a row of several tasks gets the last task's.
            prefix_mask: float [t, n]; 0 on padding.

        Returns:
            Logits, float [b, t, c]: -inf if a row has no token of the task, and past the labels of a task.
        """
        segments = torch.div(token_type_ids, 2, rounding_mode="trunc")  # // compares signs, as TensorRT cannot
        numbers = torch.arange(1, label_weights.shape[0] + 1, device=input_ids.device)
        of_task = (segments[:, None, :] == numbers[None, :, None]) & (attention_mask[:, None, :] == 1)  # [b, t, s]
        row_kv = row_mask = None
        if prefix_kv is not None and prefix_mask is not None:
            task = segments.amax(1) - 1
            row_kv = prefix_kv.index_select(2, task)
            row_mask = prefix_mask.index_select(0, task).to(torch.int64)
        if self.blocks:
            assert row_kv is not None, "a causal model"
            assert row_mask is not None, "a causal model"
            hidden_states = self._hidden_states_in_blocks(
                input_ids, attention_mask, segments, prompt_embeddings, row_kv, row_mask
            )
            index = first_of_largest(of_task * torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device))
            read = hidden_states.gather(1, index[..., None].expand(-1, -1, hidden_states.shape[2]))  # [b, t, h]
        else:
            types = token_type_ids % 2 if self.one.token_types else None
            hidden_states = self.one.hidden_states(
                input_ids, attention_mask, prompt_embeddings, row_kv, types, row_mask
            )
            read = self.one.pick(hidden_states, input_ids, attention_mask, prompt_embeddings.shape[0])[
                :, None
            ]  # [b, 1, h]
        logits = (self.one.transform(read)[:, :, None] @ label_weights.transpose(1, 2))[:, :, 0] + label_bias
        return torch.where(of_task.any(2)[..., None], logits, -torch.inf)

    def _hidden_states_in_blocks(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        segments: Tensor,
        prompt_embeddings: Tensor,
        prefix_kv: Tensor,
        prefix_mask: Tensor,
    ) -> Tensor:
        """Run the backbone, float [b, s, h]; a token's position is the number of earlier tokens it attends to."""
        batch, length = input_ids.shape
        order = torch.arange(length, device=input_ids.device)
        visible = (order[:, None] >= order[None, :]) & (attention_mask[:, None, :] == 1)
        visible = visible & ((segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None]))  # [b, s, s]
        n_leading = prefix_mask.sum(1, keepdim=True)
        before = visible.sum(2) - 1  # -1 for padding that sees nothing; relu, since TensorRT clips no integers
        positions = before.relu() + self.one.first_position + n_leading
        leading = (prefix_mask == 1)[:, None, :].expand(-1, length, -1)
        hidden = torch.where(
            torch.cat([leading, visible], dim=2)[:, None], 0.0, torch.finfo(prompt_embeddings.dtype).min
        )
        hidden_states: Tensor = self.one.base(
            inputs_embeds=self.one.embed(input_ids, prompt_embeddings),
            attention_mask=hidden,
            position_ids=positions,
            past_key_values=cache_of(prefix_kv, batch),
        ).last_hidden_state
        return hidden_states
