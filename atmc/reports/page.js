"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // plotly reads a little HTML in its texts: names from files must stay text.
  const text = (value) =>
    String(value).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const number = (value) => (value === null ? "–" : value.toLocaleString("en-US"));
  const share = (value) => (value === null || value === undefined ? "–" : value.toFixed(4));
  const faded = (colour, alpha) =>
    colour + Math.round(255 * alpha).toString(16).padStart(2, "0");
  const element = (name, attributes = {}, ...children) => {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };

  // ---- layout that all plots share

  const config = {
    responsive: true,
    displaylogo: false,
    showSendToCloud: false, // plotly's "share" would take the figures to somebody else's server
    plotlyServerURL: "",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };
  const base = () => ({
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: css("--ink") },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--accent") },
    hoverlabel: {
      align: "left",
      bgcolor: css("--sheet"),
      bordercolor: css("--rule"),
      font: { color: css("--ink"), size: 12.5 },
    },
  });
  // 1, 2 and 5 times each power of ten, or even distances over a narrow range, written as a person
  // would; far beyond the range, for those who zoom out.
  const sizeTicks = ([low, high]) => {
    const values = [];
    if (high / low < 5) {
      const least = (high - low) / 5, power = 10 ** Math.floor(Math.log10(least));
      const step = [1, 2, 5, 10].find((digit) => digit * power >= least) * power;
      for (let i = -25; i <= 30; i++) {
        const value = (Math.ceil(low / step) + i) * step;
        if (value > 0) values.push(value);
      }
    } else {
      for (let power = Math.floor(Math.log10(low)) - 2; power <= Math.log10(high) + 2; power++)
        for (const digit of [1, 2, 5]) values.push(digit * 10 ** power);
    }
    const written = (size) => {
      for (const [unit, sign] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]])
        if (size >= unit) return `${+(size / unit).toPrecision(4)} ${sign}`;
      return String(+size.toPrecision(4));
    };
    return { tickvals: values, ticktext: values.map(written) };
  };
  const axis = (more) => ({
    gridcolor: css("--rule"),
    linecolor: css("--soft"),
    zeroline: false,
    ticks: "outside",
    ticklen: 4,
    tickcolor: css("--rule"),
    automargin: true,
    ...more,
  });

  // ---- the curves of one group of runs

  const describe = (run) =>
    [
      `<b>${text(run.series)}</b>, seed ${run.seed === null ? "–" : run.seed}`,
      `${number(run.file_bits)} file bits, ${number(run.paper_bits)} paper bits`,
      `budget ${number(run.budget_bits)} bits, ${number(run.nonzeros)} nonzeros`,
      run.multiply_adds !== null &&
        `${number(run.multiply_adds)} multiply-adds` +
          (run.latency_ms === null ? "" : `, ${+run.latency_ms.toPrecision(3)} ms`),
      Object.entries(run.accuracy).map(([name, value]) => `${text(name)} ${share(value)}`).join(", "),
      `<i>${text(run.path)}</i>`,
    ].filter(Boolean).join("<br>");

  const seriesTraces = (series, over, accuracy, panel) => {
    const { colour, symbol, dash } = series.style;
    const axes = { xaxis: panel ? "x2" : "x", yaxis: panel ? "y2" : "y" };
    const group = { legendgroup: series.name, name: text(series.name), ...axes };
    const points = series.points[over.key][accuracy] || [];
    const runs = series.runs.filter((run) => accuracy in run.accuracy && run[over.key]);
    const several = points.some((point) => point.runs > 1);
    const x = points.map((point) => point.x);
    const traces = [];
    if (several) {
      traces.push({
        ...group, showlegend: false, hoverinfo: "skip", mode: "lines", line: { width: 0 },
        x: [...x, ...x.slice().reverse()],
        y: [...points.map((p) => p.high), ...points.map((p) => p.low).reverse()],
        fill: "toself", fillcolor: faded(colour, 0.16), meta: "band",
      });
      traces.push({
        ...group, showlegend: false, mode: "markers", meta: "runs",
        x: runs.map((run) => run[over.key]), y: runs.map((run) => run.accuracy[accuracy]),
        marker: { color: faded(colour, 0.5), symbol, size: 6 },
        text: runs.map(describe), hovertemplate: "%{text}<extra></extra>",
      });
    }
    const texts = several
      ? points.map((p) =>
          [
            `<b>${text(series.name)}</b>, mean of ${p.runs} run${p.runs === 1 ? "" : "s"}`,
            `${accuracy === "clean" ? "clean" : "robust"} ${share(p.mean)} (${share(p.low)} to ${share(p.high)})`,
            `${number(Math.round(p.x))} ${over.name}`,
          ].join("<br>"))
      : points.map((p) => describe(runs.find((run) =>
          run[over.key] === p.x && run.budget_bits === p.budget_bits)));
    traces.push({
      ...group, showlegend: panel === 0, mode: "lines+markers", meta: "mean",
      x, y: points.map((point) => point.mean),
      line: { color: colour, width: 2, dash }, marker: { color: colour, symbol, size: 9 },
      text: texts, hovertemplate: "%{text}<extra></extra>",
    });
    return traces;
  };

  const denseTraces = (series, index, over, accuracy, panel, range) => {
    const values = series.runs.map((run) => run.accuracy[accuracy]).filter((v) => v !== undefined);
    if (!values.length) return [];
    const mean = values.reduce((a, b) => a + b, 0) / values.length;
    // Many points, so that the line can be pointed at anywhere.
    const x = Array.from({ length: 41 }, (_, i) => range[0] * (range[1] / range[0]) ** (i / 40));
    const size = series.runs[0][over.dense];
    return [{
      legendgroup: series.name, name: text(series.name), showlegend: panel === 0,
      xaxis: panel ? "x2" : "x", yaxis: panel ? "y2" : "y", mode: "lines", meta: "dense",
      x, y: x.map(() => mean),
      line: { color: css("--ink"), width: 1.4, dash: index % 2 ? "dashdot" : "dot" },
      hovertemplate:
        `<b>${text(series.name)}</b>, ${values.length} run${values.length === 1 ? "" : "s"}<br>` +
        `${accuracy === "clean" ? "clean" : "robust"} ${share(mean)}<br>` +
        `${number(size)} ${over.dense_name}<extra></extra>`,
    }];
  };

  // A range of a logarithmic axis with a margin; two powers of ten where nothing is to be drawn.
  const around = (sizes, dense) => {
    if (!sizes.length) return [dense / 100, dense];
    const [low, high] = [Math.min(...sizes), Math.max(...sizes)];
    const margin = low < high ? Math.min(1.25, (high / low) ** 0.15) : 1.25;
    return [low / margin, high * margin];
  };

  const drawCurves = (group, index) => {
    const place = $(`curves-${index}`);
    const chooser = $(`robust-${index}`);
    const robust = chooser ? chooser.value : (group.robust[0] || {}).name;
    const panels = robust ? ["clean", robust] : ["clean"];
    const narrow = place.clientWidth < 760;
    const over = group.axes[$(`over-${index}`)?.selectedIndex ?? 0];
    const sizes = group.series.flatMap((s) => s.runs.map((run) => run[over.key])).filter(Boolean);
    const range = around(sizes, over.dense_value || 1e6);
    const traces = panels.flatMap((accuracy, panel) => [
      ...group.series.flatMap((series) => seriesTraces(series, over, accuracy, panel)),
      ...group.dense.flatMap((series, i) => denseTraces(series, i, over, accuracy, panel, range)),
    ]);
    const label = robust && group.robust.find((entry) => entry.name === robust).label;
    const size = (more) =>
      axis({ type: "log", range: range.map(Math.log10), title: { text: over.label, font: { size: 13 } },
             ...sizeTicks(range), uirevision: over.key, ...more });
    const height = () => axis({ tickformat: ".2f" });
    const panelTitle = (words, panel) => ({
      xref: `${panel ? "x2" : "x"} domain`, yref: `${panel ? "y2" : "y"} domain`, x: 0, y: 1,
      xanchor: "left", yanchor: "bottom", yshift: 8, showarrow: false, text: text(words),
      font: { size: 13.5, color: css("--ink") },
    });
    const entries = group.series.length + group.dense.length;
    const perRow = Math.max(1, Math.floor(place.clientWidth / 190));
    const layout = {
      ...base(),
      height: (narrow && robust ? 760 : 440) + 24 * Math.ceil(entries / perRow),
      margin: { l: 44, r: 12, t: 46, b: 40 },
      hovermode: "closest",
      grid: { rows: narrow ? panels.length : 1, columns: narrow ? 1 : panels.length,
              pattern: "independent", xgap: 0.13, ygap: 0.25 },
      xaxis: size({}),
      yaxis: height(),
      annotations: [panelTitle("clean accuracy", 0)],
      legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0,
                font: { size: 13 }, itemwidth: 40, groupclick: "togglegroup", tracegroupgap: 0 },
      uirevision: "same",
    };
    if (robust) {
      layout.xaxis2 = size({ matches: "x" });
      layout.yaxis2 = height();
      layout.annotations.push(panelTitle(label, 1));
    }
    Plotly.react(place, traces, layout, config);
  };

  // ---- where the bits went

  const labels = { dense: "dense part", header: "file header" };

  const drawLayers = () => {
    const rows = data.layers[$("layers-run").value];
    const kind = $("layers-kind").value;
    const colours = data.stacks[kind];
    const names = Object.keys(colours);
    const total = rows.reduce((sum, row) => sum + names.reduce((s, n) => s + row[kind][n], 0), 0);
    const traces = names.map((name) => ({
      type: "bar", orientation: "h", name: labels[name] || name,
      y: rows.map((row) => text(row.layer)),
      x: rows.map((row) => row[kind][name]),
      marker: { color: colours[name] },
      text: rows.map((row) =>
        [
          `<b>${text(row.layer)}</b>: ${labels[name] || name} ${number(row[kind][name])} bits, ` +
            `${((100 * row[kind][name]) / total).toFixed(1)} % of the file`,
          row.elements ? `nonzeros: U ${number(row.nonzeros.U)}, V ${number(row.nonzeros.V)}, C ${number(row.nonzeros.C)}` : "",
        ].filter(Boolean).join("<br>")),
      textposition: "none",
      hovertemplate: "%{text}<extra></extra>",
    }));
    Plotly.react($("layers"), traces, {
      ...base(),
      barmode: "stack",
      bargap: 0.35,
      height: 130 + 34 * rows.length,
      margin: { l: 20, r: 16, t: 10, b: 40 },
      xaxis: axis({ title: { text: "file bits", font: { size: 13 } }, tickformat: ",d" }),
      yaxis: axis({ autorange: "reversed", ticks: "", gridcolor: "rgba(0,0,0,0)" }),
      legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0, traceorder: "normal" },
    }, config);
  };

  // ---- adversarial examples

  const drawSheet = () => {
    const sheet = data.sheets[$("sheet-run").value];
    const fooled = sheet.examples.filter((e) => e.before === e.label && e.after !== e.label).length;
    const right = sheet.examples.filter((e) => e.before === e.label).length;
    $("sheet-settings").textContent =
      `PGD with ${sheet.steps} steps of ${sheet.step_size.toPrecision(3)} within ε = ` +
      `${+sheet.eps.toPrecision(4)}, one random start. Of these ${sheet.examples.length} images the ` +
      `model has ${right} right before the attack and ${right - fooled} under it.`;
    const className = (label) => sheet.classes?.[label] ?? label;
    $("sheet").replaceChildren(...sheet.examples.map((example) => {
      const images = ["image", "perturbation", "attacked"];
      const verdict = example.before !== example.label
        ? ["wrong", "wrong before"] : example.after === example.label ? ["held", "held"] : ["fooled", "fooled"];
      return element("figure", { class: "card" },
        element("div", { class: "images" }, ...images.map((name) => {
          const alt = `${name}, true label ${className(example.label)}`;
          return element("div", {}, element("img", { src: example[name], alt }), element("span", {}, name));
        })),
        element("figcaption", {},
          element("span", {}, `true ${className(example.label)} · before ${className(example.before)} · ` +
            `under attack ${className(example.after)}`),
          element("span", { class: `verdict ${verdict[0]}` }, verdict[1])));
    }));
  };

  // ---- the table

  const sortable = (table) => {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
        const numeric = !head.classList.contains("text");
        const compare = (a, b) => {
          const [left, right] = [value(a), value(b)];
          if (left === "" || right === "") return (left === "") - (right === ""); // unknown: last, always
          const order = numeric ? left - right : left.localeCompare(right, "en", { numeric: true });
          return up ? order : -order;
        };
        heads.forEach((each) => each.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        body.append(...[...body.rows].sort(compare));
      });
    });
  };

  // ---- everything

  const draw = () => {
    data.groups.forEach((group, index) => $(`curves-${index}`) && drawCurves(group, index));
    if ($("layers")) drawLayers();
  };
  draw();
  document.querySelectorAll("table.sortable").forEach(sortable);
  data.groups.forEach((group, index) => {
    for (const id of [`robust-${index}`, `over-${index}`])
      if ($(id)) $(id).addEventListener("change", () => drawCurves(group, index));
  });
  for (const id of ["layers-run", "layers-kind"]) if ($(id)) $(id).addEventListener("change", drawLayers);
  if ($("sheet-run")) {
    $("sheet-run").addEventListener("change", drawSheet);
    drawSheet();
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) {
      width = innerWidth;
      requestAnimationFrame(draw);
    }
  });
})();
