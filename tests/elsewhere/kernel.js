// Bundled to node_modules/kernel.js: a connection to a kernel, of the library that the Jupyter extension uses, too.
export { KernelManager, ServerConnection } from "@jupyterlab/services";
