"""CurveFitter: the law dragged against points or fitted to them, with its residuals, its forecast and its rivals."""

import io
import json
import re

import numpy as np
import pandas as pd
import traitlets
from matplotlib.figure import Figure

from erltool.errors import ErltoolError
from erltool.law.fit import LawFit, fit_law
from erltool.law.forecast import Forecast, forecast
from erltool.law.rivals import RIVALS, compare_laws, verdict
from erltool.runs.folder import Run
from erltool.text import visible
from erltool.widgets.curves import LAW, LAWS, Curve, draw_picture, grid_of
from erltool.widgets.points import Points, named_points, points_of
from erltool.widgets.view import CHOSEN, View, javascript, message

PERFORMANCE = {"eval_accuracy": "held-out accuracy", "reward": "training reward"}
FORMATS = {
    "png": "image/png", "svg": "image/svg+xml", "pdf": "application/pdf", "json": "application/json",
    "tex": "application/x-tex",
}  # fmt: skip
ASKED = ("current", "performance", "window", "block_length", "law", "cut", "beside")  # what the kernel fits anew for
MOST = 12  # sources whose points are sent
REACH = 100  # steps of a slider of a or b on either side of the fit


class CurveFitter(View):
    """`CurveFitter(source)`: drag a and b of R = -a exp(H) + b against points or let it fit; `.result` is the fit.

    `source` is a Run, a run's folder or one that holds runs, a table with the columns `entropy` (nats) and
    `performance` (as importers' `points`; its `.attrs["unit"]` is the unit), two arrays (H, R) in the order of the run,
    or a mapping of names to these. A run's performance is its held-out accuracy, or the mean training reward of each
    iteration. A point is the mean of `window` neighbouring measurements. `.result` is a LawFit, or a Curve where a and
    b are dragged or a rival law is chosen. `.forecast` is a Forecast from the first points, the fraction `cut` of all;
    None for a cut of 1. `.compare()` compares the laws; the view asks for it when the points have changed and the
    reader pauses. `problem` says what cannot be fitted; `.result` then raises ErltoolError with it.
    """

    _esm = javascript("curve_fitter.js")
    sources: traitlets.List[dict] = traitlets.List().tag(sync=True)
    """A dict each: `name`, and whether it is a `run`."""
    laws = traitlets.List([[name, RIVALS[name].formula] for name in LAWS]).tag(sync=True)
    data = traitlets.Dict().tag(sync=True)
    raw: traitlets.List[dict] = traitlets.List().tag(sync=True)
    """Each source's points by performance, h and r as float64 bytes, `unit`, and whether they are a `run`'s; for a view
    without a kernel, which then fits them itself. Empty for more than MOST sources."""
    verdict = traitlets.Unicode("").tag(sync=True)
    """Result of `compare` on the points on show, in words; empty before."""
    current = traitlets.Int(0, min=0).tag(**CHOSEN)
    """Position in `sources` of the one that is fitted."""
    beside = traitlets.List(traitlets.Int(min=0)).tag(**CHOSEN)
    """Positions of other sources, drawn with their own fits."""
    performance = traitlets.Enum(tuple(PERFORMANCE), "eval_accuracy").tag(**CHOSEN)
    law = traitlets.Enum(LAWS, LAW).tag(**CHOSEN)
    window = traitlets.Int(1, min=1).tag(**CHOSEN)
    """Measurements in a point; at most a third of them."""
    block_length = traitlets.Int(None, allow_none=True, min=1).tag(**CHOSEN)
    """Points in a block of fit_law's bootstrap; at most half of them."""
    cut = traitlets.Float(1.0, min=0.01, max=1.0).tag(**CHOSEN)
    """Fraction of the points that forecasts the others; 1 for no forecast."""
    log_axis = traitlets.Bool(False).tag(**CHOSEN)
    a = traitlets.Float(None, allow_none=True).tag(**CHOSEN)
    """As dragged; None for least squares. Likewise b."""
    b = traitlets.Float(None, allow_none=True).tag(**CHOSEN)

    def __init__(self, source, **settings):
        self._points: dict[tuple, Points] = {}
        self._fits: dict[tuple, LawFit] = {}
        self._forecast: Forecast | None = None
        try:
            self._named, problem = named_points(source), ""
        except ErltoolError as e:
            self._named, problem = {}, visible(f"CurveFitter: {e}")
        sources = [{"name": visible(str(n)), "run": isinstance(s, Run)} for n, s in self._named.items()]
        super().__init__(sources=sources, problem=problem, **settings)
        self.raw = [self._raw(i) for i in range(len(sources))] if len(sources) <= MOST else []
        self._load()
        self.observe(lambda change: self._load(change.name), list(ASKED))
        self.on_msg(lambda _, content, buffers: self._on_button(content))

    @traitlets.validate("a", "b")
    def _finite(self, proposal) -> float | None:
        if proposal.value is not None and not np.isfinite(proposal.value):
            raise ErltoolError(
                f"CurveFitter: {proposal.trait.name} {proposal.value}: must be finite, or None to fit it"
            )
        return proposal.value

    # --- what is fitted -------------------------------------------------------------------------------

    @property
    def result(self) -> LawFit | Curve:
        """The fit or curve on show."""
        fit = self._fit(self._at)
        rest = fit.entropy, fit.performance, fit.unit
        if self.law != LAW:
            if (fit.entropy <= 0).any():
                raise ErltoolError(f"CurveFitter: the law {self.law} needs entropies above 0; choose {LAW}")
            return Curve(self.law, RIVALS[self.law].fit(*rest[:2]), *rest)
        if self.a is None and self.b is None:
            return fit
        a, b = (fit.a if self.a is None else self.a), (fit.b if self.b is None else self.b)
        return Curve(LAW, lambda h: b - a * np.exp(h), *rest, a, b)

    @property
    def forecast(self) -> Forecast | None:
        """The forecast from the fraction `cut` of the points; None for a cut of 1, another law, or too few points."""
        return self._forecast

    def compare(self) -> pd.DataFrame:
        """compare_laws on the points on show; sets `verdict`. Raises ErltoolError where nothing can be fitted."""
        fit = self._fit(self._at)
        table = compare_laws(fit.entropy, fit.performance)
        self.verdict = verdict(table)
        return table

    @property
    def _at(self) -> int:
        n = len(self.sources)
        if not n:
            raise ErltoolError(self.problem)
        if self.current >= n:
            raise ErltoolError(f"CurveFitter: source {self.current} does not exist; there are 0 to {n - 1}")
        return self.current

    def _fit(self, at: int) -> LawFit:
        """The law fitted to a source. Raises ErltoolError for what cannot be fitted."""
        block = self.block_length if at == self.current else None
        key = at, self.performance, self.window, block
        if key not in self._fits:
            points = self._measured(at)
            points = points.averaged(min(self.window, points.widest))
            h, r = points.entropy, points.performance
            block = block and min(block, max(1, len(h) // 2))
            average = points.entropy_average
            self._fits[key] = fit_law(h, r, unit=points.unit, entropy_average=average, block_length=block)
        return self._fits[key]

    def _measured(self, at: int, performance: str = "") -> Points:
        """A source's points before they are averaged."""
        key = at, performance or self.performance
        if key not in self._points:
            source = list(self._named.values())[at]
            self._points[key] = points_of(source, key[1]) if isinstance(source, Run) else source
        return self._points[key]

    def _raw(self, at: int) -> dict:
        """A source's points for the view, by performance; those that cannot be fitted are left out."""
        found = {}
        for name in PERFORMANCE if self.sources[at]["run"] else ("",):
            try:
                points = self._measured(at, name or self.performance)
                fit = fit_law(points.entropy, points.performance, unit=points.unit)
            except ErltoolError:
                continue
            found[name] = {"h": points.entropy.tobytes(), "r": points.performance.tobytes(), "unit": fit.unit}
        return found

    # --- what is shown --------------------------------------------------------------------------------

    def _load(self, changed: str = "") -> None:
        """Fits the points on show, and sends the fit as one message."""
        if not self.sources:
            return
        with self.hold_sync():
            if changed in ("current", "performance", "window", "law"):
                self.a = self.b = None
            if changed in ("current", "performance", "window"):
                self.verdict = ""
            self._forecast = None
            try:
                self.data, self.problem = self._data(), ""
            except ErltoolError as e:
                self.data, self.problem = {"notes": [], "of": [getattr(self, name) for name in ASKED]}, visible(str(e))

    def _data(self) -> dict:
        """The trait `data`: numbers as float32 bytes, and words."""
        fit = self._fit(self._at)
        others: dict[int, LawFit] = {}
        notes: list[str] = []
        for i in self.beside:
            try:
                others |= {i: self._fit(i)} if i != self.current and i < len(self.sources) else {}
            except ErltoolError as e:
                notes.append(visible(f"{self._name(i)} is left out: {e}"))
        grid, at_most = grid_of([fit, *others.values()]), self._measured(self.current).widest
        curve = fit if self.law == LAW else self.result
        low, high = fit.band(grid) if self.law == LAW else ((), ())
        return {
            "h": _bytes(fit.entropy), "r": _bytes(fit.performance), "grid": _bytes(grid),
            "curve": _bytes(curve.predict(grid)), "low": _bytes(low), "high": _bytes(high),
            "a": fit.a, "b": fit.b, "rmse": curve.rmse, "unit": fit.unit,
            "ceiling": curve.ceiling if np.isfinite(curve.ceiling) else None,
            "interval": list(fit.interval()["ceiling"]) if self.law == LAW else None,
            "step": max(abs(fit.a), float(np.ptp(fit.performance))) / REACH or 1 / REACH,
            "window": min(self.window, at_most), "window_max": at_most,
            "block": fit.block_length, "block_max": len(fit.entropy) // 2,
            "rows": [_row(self._name(i), f) for i, f in [(self.current, fit), *others.items()]],
            "notes": notes + list(fit.warnings if self.law == LAW else ()), "words": self._words(curve),
            "beside": [{"at": i, "h": _bytes(f.entropy), "r": _bytes(f.performance), "curve": _bytes(f.predict(grid))}
                       for i, f in others.items()],
            "forecast": self._forecast_data(fit, grid), "of": [getattr(self, name) for name in ASKED],
        }  # fmt: skip

    def _forecast_data(self, fit: LawFit, grid: np.ndarray) -> dict:
        if self.law != LAW:
            return {"words": "The forecast is the exponential law's; choose it for one."}
        if self.cut == 1:
            return {"words": "No forecast: all points are fitted. Move the forecast cut to the left for one."}
        try:
            f = forecast(fit.entropy, fit.performance, cut=self.cut, unit=fit.unit, entropy_average=fit.entropy_average)
        except ErltoolError as e:
            return {"words": f"No forecast from {self.cut:.0%} of the points: {e}"}
        self._forecast, count = f, len(f.law.entropy)
        low, high = f.at(grid)
        return {
            "count": count, "curve": _bytes(f.law.predict(grid)), "low": _bytes(low), "high": _bytes(high),
            "words": f"From the first {count} points: {f.covered:.0%} of the other {len(f.entropy)} lie in the "
            f"{f.level:.0%} interval, RMSE {f.rmse:.4g}. {' '.join((f.advice, *f.warnings))}",
        }  # fmt: skip

    def _name(self, at: int) -> str:
        return self.sources[at]["name"]

    def _words(self, curve: LawFit | Curve) -> str:
        name, unit, n = self._name(self.current), curve.unit, len(curve.entropy)
        if isinstance(curve, LawFit):
            low, high = curve.interval()["ceiling"]
            law = f"R = {-curve.a:.4g} exp(H) {'-' if curve.b < 0 else '+'} {abs(curve.b):.4g}"
            return (
                f"{name}: {law} fitted to {n} points, RMSE {curve.rmse:.3g} ({unit}), R² {curve.r_squared:.3f}; "
                f"ceiling {curve.ceiling:.4g} ({low:.4g} to {high:.4g} at 95 %)."
            )
        if curve.dragged:
            fit = self._fit(self.current)
            return (
                f"{name}: dragged to a = {curve.a:.4g}, b = {curve.b:.4g}: RMSE {curve.rmse:.3g} ({unit}) where least "
                f"squares has {fit.rmse:.3g}; ceiling {curve.ceiling:.4g}."
            )
        end = f"{curve.ceiling:.4g}" if np.isfinite(curve.ceiling) else "without bound"
        formula = RIVALS[curve.law].formula
        return f"{name}: {curve.law}, {formula}, fitted to {n} points, RMSE {curve.rmse:.3g} ({unit}); at H = 0 {end}."

    @property
    def sentence(self) -> str:
        if self.problem:
            return self.problem
        said = [self._words(self.result)] + ([self.data["forecast"]["words"]] if self.forecast else [])
        return " ".join([*said, *([self.verdict] if self.verdict else [])])

    def picture(self) -> Figure:
        """The points, the law and its 95 % band or the dragged or rival curve, residuals, ceiling and forecast."""
        if self.problem:
            return message(self.problem)
        fits = [(self._name(i), self._fit(i)) for i in (self.current, *(b["at"] for b in self.data["beside"]))]
        return draw_picture(fits, self.result, self.forecast, self.log_axis)

    # --- files ----------------------------------------------------------------------------------------

    def export(self, format: str) -> bytes:
        """The picture as "png", "svg" or "pdf", or the result's numbers as "json" or as "tex", a LaTeX table.

        Raises ErltoolError for another format, or where nothing is fitted.
        """
        if format not in FORMATS:
            raise ErltoolError(f"CurveFitter: format {format!r}: use one of {', '.join(FORMATS)}")
        result = self.result
        if format in ("json", "tex"):
            text = result.latex() if format == "tex" else json.dumps(result.to_dict(), indent=1, allow_nan=False)
            return (text + "\n").encode()
        file = io.BytesIO()
        self.picture().savefig(file, format=format, dpi=200)
        return file.getvalue()

    def _on_button(self, content) -> None:
        """A message of the view: {"command": "compare"} or {"command": "export", "format": ...}."""
        command = content.get("command") if isinstance(content, dict) else None
        try:
            if command == "compare" and not self.verdict:
                self.compare()
            elif command == "export":
                suffix = str(content.get("format"))
                blob, stem = self.export(suffix), re.sub(r"[^\w.-]+", "-", self._name(self.current))[:60]
                self.send({"name": f"law-{stem}.{suffix}", "type": FORMATS[suffix]}, [blob])
        except ErltoolError as e:
            if command == "compare":
                self.verdict = f"The laws are not compared: {e}."
            else:
                self.problem = visible(str(e))


def _row(name: str, fit: LawFit) -> list[str]:
    """A fit's line of the table: each number, and its 95 % interval after a bar."""
    interval = {k: f"{getattr(fit, k):.4g}|{low:.4g} to {high:.4g}" for k, (low, high) in fit.interval().items()}
    return [name, *interval.values(), f"{fit.r_squared:.3f}", f"{fit.rmse:.3g}", str(len(fit.entropy))]


def _bytes(values) -> bytes:
    return np.asarray(values, np.float32).tobytes()
