"""How every drawing of the report looks, and how matplotlib's SVG becomes a part of the page.

Colours are names that the page fills in (see `COLOURS`), so that one drawing serves light, dark and
print.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import Any

import matplotlib as mpl
from markupsafe import escape
from matplotlib.figure import Figure

from lobule.errors import show

_NAMES = ("ink", "muted", "rule", "surface", "c0", "c1", "c2", "c3", "c4", "c5")

COLOURS = {name: f"#0000{i + 10}" for i, name in enumerate(_NAMES)}
"""By CSS variable of the page, the colour to draw it in; `to_svg` swaps the variable in."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may be called "$x$"
    "axes.unicode_minus": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["ink"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"],
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.7,
    "legend.frameon": True,
    "legend.framealpha": 0.85,
    "legend.facecolor": COLOURS["surface"],
    "legend.edgecolor": "none",
    "legend.fontsize": 8.5,
    "legend.handlelength": 2.2,
    "legend.borderpad": 0.3,
    "path.simplify": False,
    "hatch.linewidth": 0.6,
}
"""What every drawing is made under (`mpl.rc_context`)."""


def to_svg(figure: Figure, name: str, alt: str) -> str:
    """Render, and turn a stand-alone SVG file into an element that lives among others.

    Identifiers that nothing refers to go; the rest get `name` in front. The font is the page's.
    """
    out = io.StringIO()
    with warnings.catch_warnings(), mpl.rc_context({"svg.hashsalt": name}):
        # the browser draws the text: a sign that our own font lacks is no loss
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=nothing)
    drawn = out.getvalue()
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawn)[0]
    body = drawn[drawn.index(">", drawn.index("<svg")) + 1 :]
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.S)
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', body))

    def adapt(tag: re.Match[str]) -> str:
        text = re.sub(
            r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", tag[0]
        )
        text = re.sub(r"url\(#", f"url(#{name}-", text)
        text = re.sub(r'xlink:href="#', f'href="#{name}-', text)
        text = re.sub(r"font-family: [^;\"]*; ", "", text)
        return re.sub(r"#0000(\d\d)", lambda m: f"var(--{_NAMES[int(m[1]) - 10]})", text)

    # only inside tags: what stands between them may be a class name
    body = re.sub(r"<[^>]*>", adapt, body)
    body = re.sub(r"\s*\n\s*", "\n", body).strip()
    return (
        f'<svg class="drawing" role="img" viewBox="0 0 {width} {height}" '
        f'aria-label="{escape(show(alt))}">\n{body}'
    )
