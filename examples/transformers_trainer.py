"""Trainer of transformers: whole neurons of a small GPT's MLPs go to zero; nothing is downloaded.

``ProxFactory`` builds the optimizer when Trainer asks for it, also under FSDP. Without FSDP,
``Trainer(optimizers=(ProxOptimizer(...), scheduler))`` does the same.
"""

import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from torchreg import L1, Group, columns, matching
from torchreg.integrations.transformers import PenaltyLogger, ProxFactory


def texts(count: int) -> list[dict[str, torch.Tensor]]:
    """Rows that count upwards modulo 11, from a random start."""
    rows = (torch.randint(11, (count, 1)) + torch.arange(16)) % 11
    return [{"input_ids": row, "labels": row} for row in rows]


def main(steps: int = 150) -> float:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=11, n_positions=16, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    prox = {
        "penalty": Group(L1(2e-4), by=columns),  # in GPT-2's c_fc a column holds the weights into one neuron
        "select": lambda m: matching(m, "*mlp.c_fc.weight"),
        "lr": 1e-2,
    }
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=16,
            lr_scheduler_type="cosine",
            logging_steps=50,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(
            model,
            arguments,
            train_dataset=texts(400),
            optimizer_cls_and_kwargs=(ProxFactory, prox),
            callbacks=[PenaltyLogger()],
        )
        trainer.train()
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    print(f"loss {float(last['loss']):.3f}, neurons without input {last['penalty/group_sparsity']:.1%}")
    return last["penalty/group_sparsity"]


if __name__ == "__main__":
    main()
