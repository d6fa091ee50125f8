// A run that another program writes: the words of `erltool watch`, curves by step, and the law.
import { fillTable, floats, make, row, select } from "./elements.js";
import { lineChart, SERIES } from "./kit.js";
import { lawChart } from "./law_chart.js";

const CHART = [300, 170];

function chartsOf(d) {
  const at = floats(d.at);
  const curves = d.curves.map(({ title, last, y }, k) => {
    const curve = { y: floats(y), colour: SERIES[k % SERIES.length], dash: "", width: 1.8, opacity: 1 };
    const chart = lineChart(title, at, d.steps, [curve], ...CHART);
    chart.setAttribute("aria-label", `${title} by step: ${last}`);
    return chart;
  });
  return [...curves, lawChart(d.law, [], SERIES[0], CHART)];
}

// Which of a log's runs is followed; asked where there are several.
function chooser(model) {
  const node = row();
  let made = "";
  const paint = () => {
    const { runs, run } = model.get("data");
    if (made === JSON.stringify([runs, run])) return;
    made = JSON.stringify([runs, run]);
    const options = [...(run < 0 ? [["-1", "choose one"]] : []), ...runs.map((name, i) => [String(i), name])];
    const choose = (value) => Number(value) >= 0 && model.send({ command: "choose", run: Number(value) });
    node.replaceChildren(...(runs.length ? [make("label", {}, "run", select("run", options, String(run), choose))] : []));
  };
  return { node, paint };
}

export const followed = (model) => {
  const chosen = chooser(model);
  const said = make("table", { class: "said", "aria-label": "the run so far" });
  const charts = make("div", { class: "charts" });
  const node = make("div", {}, chosen.node, said, charts);
  const paint = () => {
    const d = model.get("data");
    chosen.paint();
    fillTable(said, [], d.said);
    charts.replaceChildren(...(d.curves.length && d.steps ? chartsOf(d) : []));
  };
  return { node, paint };
};
