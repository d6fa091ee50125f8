// A list of all recorded responses: searched, sorted, and opened in the widget below it.
const ROWS = 10; // responses that are listed at a time
const ORDERS = {
  "by step": (a, b) => a.step - b.step || a.at - b.at,
  "highest reward first": (a, b) => b.reward - a.reward,
  "lowest reward first": (a, b) => a.reward - b.reward,
  "highest covariance first": (a, b) => b.covariance - a.covariance,
  "longest first": (a, b) => b.tokens - a.tokens,
};
// A part of a long text, around what is searched.
const excerpt = (text, word, most = 110) => {
  const found = word ? text.toLowerCase().indexOf(word) : -1;
  const from = Math.max(0, Math.min(found - 30, text.length - most));
  return (from ? "\u2026" : "") + text.slice(from, from + most) + (from + most < text.length ? "\u2026" : "");
};
const selectOf = (name, options, act) => {
  const node = make("select", {}, ...options.map((text, k) => make("option", { value: k }, text)));
  node.addEventListener("change", act);
  return [node, make("label", {}, name, node)];
};
// All recorded responses, to be searched and sorted; `choose` shows one in the widget below.
const finder = (responses, choose) => {
  const all = responses.map(([step, at, prompt, text, reward, tokens, covariance]) => ({
    step,
    at,
    prompt,
    text,
    reward,
    tokens,
    covariance,
    words: `${prompt}\n${text}`.toLowerCase(),
  }));
  const steps = [...new Set(all.map((r) => r.step))].sort((a, b) => a - b);
  const prompts = [...new Set(all.map((r) => r.prompt))].sort().slice(0, 500);
  let most = ROWS;
  const again = () => {
    most = ROWS;
    paint();
  };
  const search = make("input", { type: "search", size: 18 });
  search.addEventListener("input", again);
  const [order, ordered] = selectOf("sort", Object.keys(ORDERS), again);
  const [step, stepped] = selectOf("step", ["all", ...steps.map(String)], again);
  const [prompt, prompted] = selectOf("prompt", ["all", ...prompts.map((p) => excerpt(p, "", 40))], again);
  const count = make("p", { class: "missing", role: "status" });
  const body = make("tbody");
  const head = ["response", "prompt", "step", "reward", "tokens", "covariance"].map((h) =>
    make("th", { scope: "col" }, h),
  );
  const table = make("table", { "aria-label": "recorded responses" }, make("thead", {}, make("tr", {}, ...head)), body);
  const more = make("button", { type: "button" }, "More");
  more.addEventListener("click", () => {
    most += 5 * ROWS;
    paint();
  });
  const rowOf = (r, word) => {
    const open = make("button", { type: "button" }, excerpt(r.text, word) || "(empty)");
    open.addEventListener("click", () => choose(r));
    const numbers = [r.step, short(r.reward), r.tokens, short(r.covariance)];
    const cells = [excerpt(r.prompt, word, 60), ...numbers].map((v) => make("td", {}, String(v)));
    return make("tr", {}, make("th", { scope: "row" }, open), ...cells);
  };
  const paint = () => {
    const word = search.value.trim().toLowerCase();
    const found = all.filter(
      (r) =>
        r.words.includes(word) &&
        (step.value === "0" || r.step === steps[step.value - 1]) &&
        (prompt.value === "0" || r.prompt === prompts[prompt.value - 1]),
    );
    found.sort(Object.values(ORDERS)[order.value]);
    count.textContent = `${found.length} of ${all.length} responses`;
    body.replaceChildren(...found.slice(0, most).map((r) => rowOf(r, word)));
    more.style.display = found.length > most ? "" : "none";
  };
  paint();
  const bar = make("div", { class: "bar" }, make("label", {}, "search", search), ordered, stepped, prompted);
  const scroll = make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "responses" }, table);
  const summary = make("summary", {}, `Find a response among ${all.length}`);
  return make("details", { class: "fold finder" }, summary, bar, count, scroll, more);
};
