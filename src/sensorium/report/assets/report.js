"use strict";
// Everything here is optional: without it the page shows the same, with the browser's own hover texts.
(() => {
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.setAttribute("aria-hidden", "true");
  document.body.append(tip);
  const show = (text, x, y) => {
    tip.textContent = text;
    tip.classList.add("on");
    const left = Math.min(Math.max(8, x + 14), innerWidth - tip.offsetWidth - 8);
    const above = y - tip.offsetHeight - 12;
    tip.style.transform = `translate(${left}px,${above > 4 ? above : y + 18}px)`;
  };
  const hide = () => tip.classList.remove("on");

  // Hover texts at once instead of after a second.
  for (const el of document.querySelectorAll("main [title]")) {
    el.dataset.tip = el.title;
    el.removeAttribute("title");
  }
  for (const title of document.querySelectorAll("svg.chart title")) {
    if (title.parentNode.matches(".mark")) title.parentNode.dataset.tip = title.textContent;
    title.remove();
  }
  addEventListener("pointermove", (event) => {
    const el = event.target.closest?.("[data-tip]");
    if (el) show(el.dataset.tip, event.clientX, event.clientY);
    else if (!event.target.closest?.("svg.chart")) hide();
  });

  // Charts: the line under the pointer is highlighted; values of long curves are shown along a vertical line.
  const unit = {
    percent: (v) => `${(100 * v).toFixed(1)} %`,
    time: (v) => (v < 60 ? `${v.toFixed(0)} s` : `${Math.floor(v / 60)} min ${Math.round(v % 60)} s`),
    count: (v) => (Math.abs(v) >= 1000 ? Math.round(v).toLocaleString("en") : v.toPrecision(3)),
  };
  const scale = (spec) => {
    const [kind, low, high, from, to, name] = spec.split(" ");
    const f = kind === "log" ? Math.log : (v) => v;
    const g = kind === "log" ? Math.exp : (v) => v;
    const [a, b, p, q] = [f(+low), f(+high), +from, +to];
    return { from: p, to: q, say: (at) => (unit[name] || unit.count)(g(a + ((at - p) / (q - p)) * (b - a))) };
  };
  const points = (path) => path.getAttribute("d").slice(1).split("L").map((pair) => pair.split(" ").map(Number));
  for (const svg of document.querySelectorAll("svg.chart")) {
    const emphasise = (name) => {
      svg.classList.toggle("hover", name !== null);
      for (const el of svg.querySelectorAll("[data-name]")) el.classList.toggle("on", el.dataset.name === name);
    };
    for (const el of svg.querySelectorAll("[data-name]")) {
      el.addEventListener("pointerenter", () => emphasise(el.dataset.name));
      el.addEventListener("pointerleave", () => emphasise(null));
    }
    if (!svg.dataset.x) continue;
    const [x, y] = [scale(svg.dataset.x), scale(svg.dataset.y)];
    const curves = [...svg.querySelectorAll(".series:not(.base)")].map((g) => ({
      name: g.dataset.name,
      color: g.style.getPropertyValue("--c"),
      at: points(g.querySelector(".line")),
      marked: g.querySelector(".mark") !== null,
    }));
    if (!curves.length || curves.some((c) => c.marked && svg.dataset.x.startsWith("log"))) continue;
    const layer = document.createElementNS(svg.namespaceURI, "g");
    svg.append(layer);
    const make = (tag, values) => {
      const el = document.createElementNS(svg.namespaceURI, tag);
      for (const [key, value] of Object.entries(values)) el.setAttribute(key, value);
      layer.append(el);
      return el;
    };
    svg.addEventListener("pointermove", (event) => {
      const spot = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      layer.replaceChildren();
      if (spot.x < x.from - 6 || spot.x > x.to + 6) return hide();
      const lines = [];
      let across = null;
      for (const curve of curves) {
        const near = curve.at.reduce((a, b) => (Math.abs(b[0] - spot.x) < Math.abs(a[0] - spot.x) ? b : a));
        if (Math.abs(near[0] - spot.x) > 40) continue;
        if (across === null || Math.abs(near[0] - spot.x) < Math.abs(across - spot.x)) across = near[0];
        make("circle", { cx: near[0], cy: near[1], r: 4, class: "spot", style: `--c:${curve.color}` });
        lines.push([near[1], `${curve.name}: ${y.say(near[1])}`]);
      }
      if (across === null) return hide();
      make("line", { x1: across, x2: across, y1: y.from, y2: y.to, class: "cross" });
      const text = lines.sort((a, b) => a[0] - b[0]).map((line) => line[1]);
      show([x.say(across), ...text].join("\n"), event.clientX, event.clientY);
    });
    svg.addEventListener("pointerleave", () => { layer.replaceChildren(); hide(); });
  }

  // Tables sort by a click on a column's name: best first, then worst first.
  for (const button of document.querySelectorAll("thead button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const column = head.cellIndex;
      const body = button.closest("table").tBodies[0];
      const up = head.getAttribute("aria-sort") === "descending" || (column === 0 && head.getAttribute("aria-sort") === "none");
      for (const th of head.parentNode.cells) th.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column]?.dataset.sort;
      const order = (a, b) => {
        const [p, q] = [key(a), key(b)];
        if (p === undefined || q === undefined) return (p === undefined) - (q === undefined);
        const by = Number.isNaN(+p) || Number.isNaN(+q) ? p.localeCompare(q) : p - q;
        return up ? by : -by;
      };
      body.append(...[...body.rows].sort(order));
    });
  }

  // A click on a class highlights it in the map.
  for (const button of document.querySelectorAll(".classes button")) {
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      const list = button.closest("ul");
      for (const other of list.querySelectorAll("button")) other.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-pressed", String(on));
      for (const mark of list.nextElementSibling.querySelectorAll("i")) mark.classList.toggle("dim", on && !mark.classList.contains(button.dataset.class));
    });
  }

  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      const code = button.previousElementSibling;
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }
})();
