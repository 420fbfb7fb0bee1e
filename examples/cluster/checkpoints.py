"""Checkpoints of a training run that survive a kill at any moment, in one process or in many."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from torchreg import ProxOptimizer


class Checkpoints:
    """Numbered checkpoints in a directory; the last two complete ones are kept.

    Args:
        folder: where they lie; on storage that all machines see if there are several.
        model: as it is trained.
        opt: its optimizer. The terms' strengths and schedules are in its state dict, but not in what
            torch.distributed.checkpoint takes of it, so there the terms are saved beside it.
        schedule: the learning rate's.
    """

    def __init__(self, folder: Path, model: nn.Module, opt: ProxOptimizer, schedule: Any) -> None:
        self.folder, self.model, self.opt, self.schedule = folder, model, opt, schedule
        self.cut = dist.is_initialized()

    def complete(self) -> list[int]:
        """The steps of the checkpoints that were written to their end."""
        mark = "*/.metadata" if self.cut else "*/all.pt"
        return sorted(int(path.parent.name) for path in self.folder.glob(mark))

    def save(self, step: int) -> None:
        """Write one; whoever is killed before it is complete leaves the one before as the last."""
        place = self.folder / str(step)
        if self.cut:
            dcp.save(self._shared(), checkpoint_id=place)  # writes .metadata last
        else:
            place.mkdir(parents=True, exist_ok=True)
            torch.save(self._own(), place / "part.pt")
            os.replace(place / "part.pt", place / "all.pt")
        if not self.cut or dist.get_rank() == 0:
            for old in self.complete()[:-2]:
                shutil.rmtree(self.folder / str(old))

    def resume(self) -> int:
        """Go on from the last complete one; its step, 0 where there is none."""
        done = self.complete()
        if not done:
            return 0
        place = self.folder / str(done[-1])
        if self.cut:
            state = self._shared()
            dcp.load(state, checkpoint_id=place)
            set_model_state_dict(self.model, state["model"])
            set_optimizer_state_dict(self.model, self.opt, state["optimizer"])
        else:
            state = torch.load(place / "all.pt", weights_only=True)
            self.model.load_state_dict(state["model"])
            self.opt.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
        return done[-1]

    def _own(self) -> dict[str, Any]:
        """Everything, of one process."""
        own = {"model": self.model, "optimizer": self.opt, "schedule": self.schedule}
        return {name: part.state_dict() for name, part in own.items()}

    def _shared(self) -> dict[str, Any]:
        """Everything, of which each process holds a part."""
        terms = {f"term {k}": term for k, term in enumerate(self.opt.terms)}
        model, optimizer = get_model_state_dict(self.model), get_optimizer_state_dict(self.model, self.opt)
        return {"model": model, "optimizer": optimizer, "schedule": self.schedule, **terms}
