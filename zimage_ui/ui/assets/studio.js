// The page's script: the elements, the form, the one stream. See page.py for how Gradio and this share the work.

import "./toasts.js";
import "./choice.js";
import "./header.js";
import "./canvas.js";
import "./welcome.js";
import "./timings.js";
import "./strip.js";
import "./chart.js";
import "./machine.js";
import "./model.js";
import { startForm } from "./compose.js";
import { start } from "./store.js";

startForm();
start();
