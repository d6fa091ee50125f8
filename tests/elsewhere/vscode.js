// What the Jupyter extension of VS Code does with a cell's widgets: its widget manager, bundled as its renderer extension
// ships it, on a kernel; anywidget's module from the nbextensions folder of the kernel's environment, by require.js.
import { activate } from "./node_modules/vscode/package/dist/ipywidgets.js";
import { KernelManager, ServerConnection } from "./node_modules/kernel.js";

const VIEW = "application/vnd.jupyter.widget-view+json";
const token = new URLSearchParams(location.search).get("token");
const serverSettings = ServerConnection.makeSettings({
  baseUrl: location.origin,
  wsUrl: location.origin.replace("http", "ws"),
  token,
  appendToken: true,
});

activate();
window.vscIPyWidgets8.load();

const loader = {
  widgetsRegisteredInRequireJs: new Set(),
  loadWidgetScript: async (name) => requirejs.config({ paths: { [name]: `nbextensions/${name}/index` } }),
  successHandler: () => {},
  errorHandler: (...what) => console.error("not loaded", ...what),
};
const kernel = await new KernelManager({ serverSettings }).startNew({ name: "python3" });
const manager = new window.vscIPyWidgets.WidgetManager(kernel, document.body, loader, () => {});

async function draw(data) {
  const element = document.createElement("div");
  element.className = "cell-output-ipywidget-background";
  document.body.append(element);
  const view = await manager.create_view(await manager.get_model(data.model_id), { el: element });
  await manager.display_view(data, view, { node: element });
}

// Runs a cell; its widgets are drawn below the others. Returns what else it printed, errors included.
window.run = async (code) => {
  const [text, drawn] = [[], []];
  const future = kernel.requestExecute({ code });
  future.onIOPub = ({ content }) => {
    if (content.data?.[VIEW]) drawn.push(draw(content.data[VIEW]));
    else text.push(content.text ?? content.data?.["text/plain"] ?? content.traceback?.join("\n") ?? "");
  };
  await future.done;
  await Promise.all(drawn);
  return text.join("");
};
window.ended = () => kernel.shutdown();
