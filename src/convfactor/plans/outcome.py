"""What became of the whole model, in words."""

from __future__ import annotations

from convfactor.plans.decisions import Decisions, WholeModel
from convfactor.plans.settings import Settings
from convfactor.plans.spending import Spending
from convfactor.plans.words import counted, percent, spread


def budget(settings: Settings) -> str:
    """What was asked for."""
    if settings.tolerance is not None:
        return f"tolerance {settings.tolerance:g}"
    if settings.model_tolerance is not None:
        return f"model tolerance {settings.model_tolerance:g}"
    better = "" if settings.higher_is_better else ", where lower is better"
    return f"at most {settings.max_drop:g} worse in {settings.evaluate}{better}"


def called(plan: Decisions) -> list[str]:
    """The calls that times are summed over, where there are several."""
    if len(plan.calls) < 2:
        return []
    return [f"times and layers of {len(plan.calls)} calls: {'; '.join(map(str, plan.calls))}"]


def spent(plan: Decisions) -> list[str]:
    """What became of the budget of a model, a line each."""
    spending = plan.spending
    if spending is None:
        return []
    lines = []
    if spending.solved is not None:
        lines.append(f"budget: {_spent(plan.settings, spending)}")
        shares = (
            f"{share.name} {share.part:.0%} for {share.saved:.0%} of the time"
            for share in spending.shares
        )
        lines.append(f"shares of it: {', '.join(shares)}, as measured one by one")
    ahead = spending.next
    if ahead is not None:
        guess = "" if ahead.measured else "about "
        lines.append(
            f"next faster: {1 / ahead.cost:.2f}x as fast by its layers instead of "
            f"{1 / spending.chosen.cost:.2f}x, for {guess}{_loss(plan.settings, ahead.loss)}"
        )
    return lines


def totals(plan: Decisions) -> list[str]:
    """What became of a budget, and of the whole model."""
    lines = spent(plan)
    if plan.whole is not None:
        lines.append(whole(plan.whole, plan.calibrated))
    return lines


def whole(measured: WholeModel, calibrated: bool) -> str:
    """Errors and times of the whole model."""
    text = f"whole model: output error {output_error(measured)}"
    if not calibrated:
        text += " on the example inputs"
    if measured.before is None or measured.after is None:
        return text
    speedup = measured.before.median / measured.after.median
    text += f"; {spread(measured.before)} -> {spread(measured.after)} ({speedup:.2f}x"
    return text + (", in channels_last)" if measured.memory_format == "channels_last" else ")")


def output_error(whole: WholeModel) -> str:
    """Errors of the model's outputs."""
    return ", ".join(percent(error) for error in whole.errors) or "no floating-point output"


def _spent(settings: Settings, spending: Spending) -> str:
    """What was lost, of what was allowed, and before refinement."""
    notes = [] if spending.refined is None else [f"{_loss(settings, spending.solved)} unrefined"]
    if spending.before is None:
        notes.append(f"{counted(spending.samples, 'batch', 'batches')} that no fit has seen")
        text = f"output error {percent(spending.loss)} of {percent(spending.limit)} allowed"
    else:
        sign = -1 if settings.higher_is_better else 1
        after = spending.before + sign * spending.loss
        text = (
            f"{settings.evaluate} {spending.before:.4g} -> {after:.4g}, "
            f"{_loss(settings, spending.loss)} of {spending.limit:g} allowed"
        )
    return text + (f" ({'; '.join(notes)})" if notes else "")


def _loss(settings: Settings, loss: float | None) -> str:
    """A loss in its unit."""
    if loss is None or not settings.evaluate:
        return percent(loss)
    return f"{loss:.3g} worse" if loss >= 0 else f"{-loss:.3g} better"
