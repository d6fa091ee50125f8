"""pandas tables with text that others wrote, such as tokens and names of runs, made safe to show."""

import pandas as pd

from erltool.text import visible


class _Shown:
    """Shows text as `visible` makes it, in which MathJax finds no formulas."""

    def _visible(self) -> pd.DataFrame | pd.Series:
        raise NotImplementedError

    def __repr__(self) -> str:
        return repr(self._visible())

    __str__ = __repr__


class Table(_Shown, pd.DataFrame):
    """A DataFrame that shows its values and its names of columns and rows as plain text.

    The values stay as they are. Everything that pandas makes of it (a slice, a mean, a join) is a Table again.
    """

    _constructor = property(lambda self: Table)
    _constructor_sliced = property(lambda self: Column)

    def _repr_html_(self) -> str | None:
        with pd.option_context("display.html.use_mathjax", False):
            page = self._visible()._repr_html_()
        if page and "mathjax_ignore" not in page:  # pandas before 3 has the class of MathJax 2 only
            page = page.replace("tex2jax_ignore", "tex2jax_ignore mathjax_ignore", 1)
        return page

    def _visible(self) -> pd.DataFrame:
        table = pd.DataFrame(self)
        for i, dtype in enumerate(table.dtypes):
            if _is_text(dtype):
                table.isetitem(i, table.iloc[:, i].map(_safe))
        return table.set_axis(_labels(table.index)).set_axis(_labels(table.columns), axis=1)


class Column(_Shown, pd.Series):
    """A column of a Table."""

    _constructor = property(lambda self: Column)
    _constructor_expanddim = property(lambda self: Table)

    def _visible(self) -> pd.Series:
        values = self.array.map(_safe) if _is_text(self.dtype) else self.array
        return pd.Series(values, index=_labels(self.index), name=_safe(self.name))


def _is_text(dtype) -> bool:
    return pd.api.types.is_string_dtype(dtype) or isinstance(dtype, pd.CategoricalDtype)


def _labels(index: pd.Index) -> pd.Index:
    if not (len(index) and (_is_text(index.dtype) or isinstance(index, pd.MultiIndex))):
        return index
    return index.map(_safe).set_names([_safe(name) for name in index.names])


def _safe(value):
    if isinstance(value, tuple):  # of a MultiIndex
        return tuple(map(_safe, value))
    return visible(value) if isinstance(value, str) else value
