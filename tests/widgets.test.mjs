// The widgets' arithmetic against Python's, and their timing. tests/test_widget_modules.py writes the vectors and runs
// this file: node --test tests/widgets.test.mjs
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { mock, test } from "node:test";
import * as bandit from "../erltool/widgets/bandit.js";
import {
  ask,
  fillTable,
  make,
  statusLine,
  throttled,
} from "../erltool/widgets/elements.js";
import {
  apart,
  lineChart,
  logTicks,
  scales,
  spanOf,
  ticks,
} from "../erltool/widgets/kit.js";
import {
  averaged,
  fitLaw,
  fitShape,
  forecastLaw,
  gridOf,
  roundEven,
  widest,
} from "../erltool/widgets/law.js";
import { nearest } from "../erltool/widgets/reading.js";
import { verdictOf } from "../erltool/widgets/control_map.js";
import {
  budget,
  clipCov,
  effects,
  falling,
  klCov,
} from "../erltool/widgets/selection.js";

import { moved } from "../erltool/widgets/token_grid.js";
import * as tokens from "../erltool/widgets/tokens.js";

const vectors = process.env.VECTORS
  ? JSON.parse(readFileSync(process.env.VECTORS, "utf8"))
  : null;
const skip = vectors
  ? false
  : "no $VECTORS: run by pytest tests/test_widget_modules.py";

function assertClose(actual, expected) {
  [actual].flat().forEach((value, i) => {
    const wanted = [expected].flat()[i];
    assert.ok(
      Math.abs(value - wanted) <= 1e-12 * Math.max(1, Math.abs(wanted)),
      `${value} is not ${wanted}`,
    );
  });
  assert.equal([actual].flat().length, [expected].flat().length);
}

// As much of a page as elements need.
class Node {
  constructor(tag) {
    Object.assign(this, { tag, attributes: {}, children: [], textContent: "" });
  }
  setAttribute(name, value) {
    this.attributes[name] = String(value);
  }
  append(...children) {
    this.children.push(...children);
  }
  replaceChildren(...children) {
    this.children = children;
  }
}
globalThis.document = {
  createElement: (tag) => new Node(tag),
  createElementNS: (_, tag) => new Node(tag),
};

test("a bandit's step is Python's", { skip }, () => {
  for (const { z, values, eta, method, expected } of vectors.bandit) {
    const change = bandit.step(z, values, eta, method);
    assertClose(bandit.softmax(z), expected.probabilities);
    assertClose(bandit.entropy(z), expected.entropy);
    assertClose(change, expected.change);
    assertClose(bandit.entropyChange(z, change), expected.exact);
    assertClose(bandit.firstOrderChange(z, change), expected.predicted);
    const sum = bandit.firstOrderTerms(z, change).reduce((a, b) => a + b, 0);
    assertClose(sum, expected.predicted);
  }
});

test("a dragged probability is reached, and the others keep their ratios", () => {
  const before = bandit.softmax([0.3, -1, 2]);
  const after = bandit.softmax(bandit.withProbability([0.3, -1, 2], 1, 0.7));
  assertClose(after[1], 0.7);
  assertClose(after[0] / after[2], before[0] / before[2]);
});

test(
  "the sliders select what Python selects, and leave the covariance that it leaves",
  { skip },
  () => {
    for (const { columns, keys, settings, expected } of vectors.selection) {
      const { low, high, clip_fraction, kl_fraction, coef } = settings;
      const clip = clipCov(columns.covariance, falling(keys), {
        low,
        high,
        fraction: clip_fraction,
      });
      const kl = klCov(falling(columns.covariance), kl_fraction);
      assert.deepEqual(
        [...clip].sort((i, j) => i - j),
        expected.clip,
      );
      assert.deepEqual(
        [...kl].sort((i, j) => i - j),
        expected.kl,
      );
      const {
        none,
        clip: afterClip,
        kl: afterKl,
      } = effects(columns, clip, kl, coef);
      assertClose([none, afterClip, afterKl], expected.covariances);
    }
    for (const [fraction, n, count] of vectors.budgets)
      assert.equal(budget(fraction, n), count);
  },
);

test("the law is fitted and forecast as Python does it", { skip }, () => {
  for (const { h, r, window, cut, grid, rivals, expected } of vectors.law) {
    const [x, y] = [averaged(h, window), averaged(r, window)];
    assertClose([...x], expected.h);
    assertClose([...y], expected.r);
    assert.equal(widest(h.length), expected.widest);
    const fit = fitLaw(x, y);
    const near = (value, wanted, within = 1e-9) =>
      assert.ok(Math.abs(value - wanted) < within, `${value}, ${wanted}`);
    for (const name of ["a", "b", "ceiling", "rmse"])
      near(fit[name], expected[name]);
    near(fit.rSquared, expected.r_squared);
    const ahead = forecastLaw(x, y, cut);
    assert.equal(ahead !== null, "forecast" in expected);
    if (ahead) {
      assert.deepEqual(
        [ahead.count, ahead.rest],
        [expected.forecast.count, expected.forecast.rest],
      );
      [ahead.a, ahead.b, ahead.restRmse].forEach((v, i) =>
        near(v, expected.forecast.law[i]),
      );
    }
    gridOf([...x]).forEach((v, i) => near(v, grid[i], 1e-6));
    for (const [law, [rmse, ...values]] of Object.entries(rivals)) {
      const found = fitShape(law, x, y);
      near(found.rmse, rmse, 1e-7);
      [0.2, 0.9].forEach((v, i) => near(found.predict(v), values[i], 1e-4));
    }
  }
  assert.deepEqual([0.5, 1.5, 2.5, 2.4, 2.6].map(roundEven), [0, 2, 2, 2, 3]);
  assert.equal(fitLaw([1, 1], [0, 1]), null);
  assert.equal(fitLaw([1, 1, 1], [0, 1, 2]), null);
});

test("names at the ends of lines keep apart, in order and within the box", () => {
  const at = apart([50, 52, 10, 51], 4, 60);
  const sorted = at.toSorted((a, b) => a - b);
  assert.ok(
    sorted.slice(1).every((v, i) => v - sorted[i] >= 14),
    String(at),
  );
  assert.ok(Math.min(...at) >= 4 && Math.max(...at) <= 60);
  assert.ok(at[2] < at[0] && at[0] < at[3] && at[3] < at[1]);
});

test("charts of one span share their axis, and name and read only lines with a label", () => {
  Node.prototype.classList = { add: () => {} };
  const [low, high] = [
    [0.2, 0.4],
    [0.6, NaN],
  ];
  const span = spanOf([{ y: low }, { y: high }]);
  const look = { colour: "var(--erltool-1)", dash: "", width: 1, opacity: 1 };
  const charts = [low, high].map((y) =>
    lineChart(
      "x",
      [1, 2],
      2,
      [
        { y, ...look, label: "<b>" },
        { y: low, ...look },
      ],
      300,
      100,
      span,
    ),
  );
  assert.deepEqual(charts[0].plot.at.y, charts[1].plot.at.y);
  assert.deepEqual(
    charts.map((c) => c.plot.lines.map(({ label }) => label)),
    [["<b>"], ["<b>"]],
  );
  assert.equal(
    charts[0].children.filter((n) => n.children[0] === "<b>").length,
    1,
  );
  assert.equal(nearest([5, 3, 1], 2.9), 1);
});

test("an interval pays, costs or leaves it open", () => {
  const words = [
    [0.1, 0.01, 0.2],
    [-0.1, -0.2, -0.01],
    [0, -0.1, 0.1],
    [0.1, null, null],
    null,
  ];
  assert.deepEqual(
    words.map((d) => verdictOf(d).word),
    ["pays", "costs", "not told apart", "not told apart", "not told apart"],
  );
});

test("responses stand in the order, and part at the places, that Python has", { skip }, () => {
  for (const { ids, rows, branches, ...d } of vectors.groups) {
    assert.deepEqual(tokens.branches(ids), branches);
    for (const [keep, expected] of Object.entries(rows)) {
      assert.deepEqual(tokens.rowsOf(d, d.groups.length - 1, keep), expected);
    }
  }
});

// A step as the kernel sends it: two responses, "ab" and "acd", to one prompt.
const bytes = (values, type = Float32Array) => new DataView(type.from(values).buffer);
const step = (more = {}) =>
  tokens.stepOf({
    texts: ["a", "b", "a", "c", "<b>"],
    begins: [0, 2],
    prompts: ["p", "p"],
    rewards: [0, 1],
    groups: [0, 0],
    strategies: ["", ""],
    wrong: [0, 0],
    ids: bytes([1, 2, 1, 3, 4], Int32Array),
    forks: bytes([0, 0, 0, 0, 0]),
    log_prob: bytes([-0.1, -3, -0.1, -1, -0.5]),
    entropy: bytes([0.3, 0.2, 0.3, 0.9, 0.1]),
    ...more,
  });
const update = {
  old_log_prob: bytes([-0.1, -3, -0.1, -1, -0.5]),
  advantage: bytes([-1, -1, 1, 1, 0]),
  covariance: bytes([-0.5, 2, 0.5, 0.1, 0]),
  push: bytes([0.01, -0.2, -0.01, 0.1, 0]),
  keys: bytes([0.1, 0.2, 0.3, 0.4, 0.5]),
};

test("keys lead along a response and between responses, and stop at the ends", () => {
  const d = step();
  const rows = tokens.rowsOf(d, 0);
  assert.deepEqual(rows, [1, 0]);
  const keys = { ArrowRight: 3, ArrowLeft: 2, End: 4, ArrowDown: 0, ArrowUp: 2, Home: 2, x: null };
  for (const [key, to] of Object.entries(keys)) assert.equal(moved(d, rows, 2, key), to, key);
  assert.equal(moved(d, rows, 4, "ArrowDown"), 1); // the other one is shorter
  assert.equal(moved(d, rows, 4, "ArrowRight"), 4);
});

test("the chosen token says what it did to the entropy and which control would have acted", () => {
  const d = step(update);
  const settings = { clip: new Set(), kl: new Set([1]), low: 1, high: 5, clipFraction: 0.02, klFraction: 0.1 };
  const said = tokens.saying(d, 1, settings);
  assert.match(said, /^A rare token \(probability 0\.050\) with advantage \u22121\.00: the update pushed it down\./);
  assert.match(said, /lowered the entropy of its place \(push \u22120\.200 nats/);
  assert.match(said, /Clip-Cov at 2 % would leave it \(others were drawn\), KL-Cov at 10 % would act on it\.$/);
  assert.match(tokens.saying(d, 3, settings), /raised the entropy .*covariance outside 1\.00 to 5\.00/);
  assert.match(tokens.saying(d, 4, settings), /advantage 0: the update did not act on it/);
  assert.match(tokens.saying(step(), 3, settings), /^One of several likely tokens .* entropy of 0\.900 nats\.$/);
});

test("a text is found across tokens, and stands in its surroundings", () => {
  const d = step(update);
  assert.deepEqual(tokens.found(d, "A"), [0, 2]);
  assert.deepEqual(tokens.found(d, "c<"), [3]);
  assert.deepEqual(tokens.found(d, ""), []);
  assert.deepEqual(tokens.around(d, 3), ["a", "c", "<b>"]);
  assert.equal(tokens.highest(d, [0, 1]), 1);
  assert.equal(tokens.mostToSee(d), 0);
});

test("a place is the same where the tokens before it are", () => {
  const [early, late] = [step(), step({ ids: bytes([1, 9, 8, 3, 4], Int32Array), entropy: bytes([0.1, 0.05, 1, 1, 1]) })];
  const at = (s) => (s === 1 ? early : late);
  assert.deepEqual(
    tokens.samePlace([1, 2], at, early, 1).map((p) => [p.step, p.at]),
    [
      [1, 1],
      [2, 1],
    ],
  );
  assert.deepEqual(
    tokens.samePlace([1, 2], at, early, 4).map((p) => p.step),
    [1],
  );
});

test("a live region speaks at most once a second, and says the last line", () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const { node, say } = statusLine();
  const [seen, spoken] = node.children;
  assert.equal(spoken.attributes.role, "status");
  let announcements = 0;
  let last = "";
  for (let ms = 0; ms < 3000; ms += 100) {
    say(`at ${ms}`);
    assert.equal(seen.textContent, `at ${ms}`);
    if (spoken.textContent !== last) announcements += 1;
    last = spoken.textContent;
    mock.timers.tick(100);
  }
  mock.timers.tick(1000);
  assert.ok(announcements <= 3, `${announcements} announcements in 3 s`);
  assert.equal(spoken.textContent, "at 2900");
  mock.timers.reset();
});

test("a throttled call is made at once, then at most once a pause, and the last is never lost", () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  let calls = 0;
  const call = throttled(() => (calls += 1), 100);
  call();
  call();
  call();
  assert.equal(calls, 1);
  mock.timers.tick(100);
  assert.equal(calls, 2);
  mock.timers.tick(1000);
  assert.equal(calls, 2);
  mock.timers.reset();
});

test("a question that nothing answers is said to be one", () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const [sent, said] = [[], []];
  const model = { send: (message) => sent.push(message) };
  const answered = ask(model, { command: "start" }, (words) => said.push(words));
  answered();
  mock.timers.tick(10_000);
  assert.deepEqual([sent, said], [[{ command: "start" }], []]);
  ask(model, { command: "start" }, (words) => said.push(words));
  mock.timers.tick(4999);
  assert.equal(said.length, 0);
  mock.timers.tick(1);
  assert.match(said.join(), /^no answer yet: .*saved page/);
  mock.timers.reset();
});

test("headers of a table have a scope, and a child that is a string stays text", () => {
  const table = make("table");
  fillTable(table, ["<b>", "x"], [["<img src=x>", "1"]]);
  const cells = table.children.flatMap((row) => row.children);
  const kinds = cells.map(
    (cell) => `${cell.tag} ${cell.attributes.scope ?? ""}`,
  );
  assert.deepEqual(kinds, ["th col", "th col", "th row", "td "]);
  assert.deepEqual(
    cells.map((cell) => cell.children[0]),
    ["<b>", "x", "<img src=x>", "1"],
  );
});

test("ticks are round and within the scale, which maps its ends to the box", () => {
  const texts = ticks(0, 1, 4).map(([, text]) => text);
  assert.deepEqual(texts, ["0.00", "0.25", "0.50", "0.75", "1.00"]);
  assert.deepEqual(
    logTicks(0.04, 0.3).map(([v]) => v),
    [0.05, 0.1, 0.2],
  );
  const at = scales(
    { left: 10, right: 110, top: 5, bottom: 55 },
    [1, 100],
    [0, 2],
    true,
  );
  assertClose([at.px(1), at.px(10), at.px(100)], [10, 60, 110]);
  assertClose([at.py(0), at.py(2), at.inside(9)], [55, 5, 5]);
});

test("colours of a group end where Python's do, and a small value is not white", { skip }, () => {
  for (const { quantity, values, groups, lengths, ends } of vectors.colours) {
    const responseOf = Int32Array.from(lengths.flatMap((n, r) => Array(n).fill(r)));
    const d = { groups, responseOf, colourings: {} };
    const { low, high, map, colour } = tokens.colouring(d, quantity, Float64Array.from(values), 1);
    assertClose([low, high], ends);
    assert.deepEqual([colour(low), colour(high)], [map[0], map.at(-1)]);
    if (map.length === 9 && quantity === "covariance") {
      assert.deepEqual(colour(0), map[4]);
      assert.deepEqual(colour(high / 8), map[6]); // an eighth of the largest is half of the way
    }
  }
});
