"""Ids + every task's rows -> logits of many tasks on one backbone: what a bundle of many tasks computes.

A token's type says whose it is: type = 2 x segment + the backbone's own token type. Segment 0 is shared by all tasks,
segment t + 1 is task t's. So a tokenizer's template says everything, and the graph has a text classifier's inputs.
Letters for shapes as in classifier.py, and `t` tasks; `c` is the most labels of a task.
"""

import torch
from torch import Tensor, nn

from ptexport.toolkit.models.classifier import PromptClassifier, cache_of


class MultitaskClassifier(nn.Module):
    """Scores rows of many tasks.

    Args:
        one: scores rows of one task.
        blocks: whether one row may hold tokens of several tasks: shared ones first, then each task's, which see the
            shared ones and themselves and have the positions they would have alone. Needs a causal model, read at the
            last token, whose window, if it has one, is no shorter than a row. Otherwise all of a row is one task's.
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
        """Score every task's labels.

        Args:
            input_ids: int64 [b, s]; an id from `vocab` on is a row of `prompt_embeddings`.
            attention_mask: int64 [b, s]; 0 on padding, on either side.
            token_type_ids: int64 [b, s]; 2 x segment + token type.
            prompt_embeddings: float [p, e], every task's.
            label_weights: float [t, c, h]; anything where a task has fewer labels.
            label_bias: float [t, c]; -inf there.
            prefix_kv: float [l, 2, t, k, n, d]; a row of several tasks gets the last one's.
            prefix_mask: float [t, n]; 0 where a task has fewer of these, which must be on the left.

        Returns:
            Logits, float [b, t, c]: -inf where a row has no token of a task, or a task no such label.
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
            score = of_task * torch.arange(input_ids.shape[1], device=input_ids.device)
            index = score.to(torch.int32).argmax(2)  # as Classifier.pick
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
        """Run the backbone, float [b, s, h]; a token's position is the number of those it sees before it."""
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
