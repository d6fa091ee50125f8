// The law of a run so far: its points, its line with the band for a measurement, and points of other runs beside them.
import { fixed, floats } from "./elements.js";
import { band, circles, line, pixels, scales, svg, ticks, words, xAxis, yAxis } from "./kit.js";

// `beside` has points {h, r} of other runs with a colour and a dash each.
export const lawChart = (law, beside, colour, [width, height]) => {
  const chart = svg(width, height);
  const room = { left: 52, right: width - 16, top: 26, bottom: height - 34 };
  const [h, r] = [floats(law.entropy), floats(law.performance)];
  const far = Math.max(0.1, ...h, ...beside.flatMap((other) => [...other.h]));
  const at = scales(room, [0, 1.05 * far], law.span);
  chart.append(words(room.left, 16, law.title, { "font-weight": 600 }));
  chart.append(...yAxis(at, ticks(...law.span, 4)), ...xAxis(at, ticks(0, far, 5)));
  chart.append(words(room.right, height - 4, law.across, { "text-anchor": "end", "font-size": 11 }));
  if (law.at) {
    const x = floats(law.at);
    chart.append(band(at, x, floats(law.low), floats(law.high), colour), line(at, x, floats(law.line), { stroke: colour }));
  }
  for (const other of beside)
    chart.append(
      line(at, other.h, other.r, { stroke: other.colour, "stroke-dasharray": other.dash, "stroke-width": 1.6 }),
    );
  chart.append(circles(pixels(at, h, r), { stroke: colour, fill: colour }));
  const ceiling = law.at ? `ceiling at entropy 0: ${fixed(law.ceiling)}` : "too few points for a law yet";
  chart.setAttribute("aria-label", `${law.title} by entropy with the law's ${100 * law.level} % band; ${ceiling}`);
  return chart;
};
