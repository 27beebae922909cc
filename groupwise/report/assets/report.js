/* Draws the curves, and makes the lists of a report sort, filter and open. Text reaches the page by textContent alone. */
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const COLOURS = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7"];
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const drawn = [];

  const element = (tag, text, className) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  const shown = (value) => (value === null || value === undefined ? "–" : Number(value).toPrecision(4));
  const atAxis = (tick) => {
    if (tick === null) return "";
    const number = Number(tick.toPrecision(4));
    return String(number).length <= 7 ? String(number) : number.toExponential();  // 0.000006 does not fit beside the axis
  };

  // --- curves

  function smoothed(values) {
    const width = Math.max(1, Math.round(values.length / 60));
    if (width === 1) return null;
    let sum = 0, count = 0;
    const kept = [];
    return values.map((value) => {
      kept.push(value);
      if (value !== null) { sum += value; count += 1; }
      if (kept.length > width) {
        const old = kept.shift();
        if (old !== null) { sum -= old; count -= 1; }
      }
      return count ? sum / count : null;
    });
  }

  function seriesOf(chart) {
    const columns = [chart.x], series = [{ label: chart.xLabel || "step" }], bands = [];
    chart.series.forEach((one, index) => {
      const place = one.heldOut ? 4 + index - chart.series.findIndex((other) => other.heldOut) : index;
      const ink = colour(COLOURS[place % COLOURS.length]);
      const value = (_, v) => shown(v);
      if (one.heldOut) {
        series.push({ label: one.label, stroke: ink, width: 2, spanGaps: true, points: { show: true, size: 7, fill: ink }, value });
        columns.push(one.y);
        const at = series.length;
        for (const [name, end] of [["high", one.high], ["low", one.low]]) {
          series.push({ label: name, stroke: "transparent", spanGaps: true, points: { show: false }, value });
          columns.push(end);
        }
        bands.push({ series: [at, at + 1], fill: ink + "2e" });
      } else {
        const mean = chart.raw ? null : smoothed(one.y);
        series.push({ label: one.label, stroke: mean ? ink + "59" : ink, width: mean ? 1 : 2, spanGaps: true, points: { show: one.y.length < 40, size: 5, fill: ink }, value });
        columns.push(one.y);
        if (mean) {
          series.push({ label: `${one.label}, smoothed`, stroke: ink, width: 2, spanGaps: true, points: { show: false }, value });
          columns.push(mean);
        }
      }
    });
    if (chart.reference !== null && chart.reference !== undefined) {
      series.push({ label: chart.referenceLabel, stroke: colour("--soft"), width: 1, dash: [6, 5], points: { show: false }, value: (_, v) => shown(v) });
      columns.push(chart.x.map(() => chart.reference));
    }
    return { columns, series, bands };
  }

  function draw(chart, place) {
    const box = element("div", undefined, "chart");
    box.append(element("h3", chart.title), element("p", chart.unit, "unit"));
    const target = element("div");
    box.append(target);
    place.append(box);
    const { columns, series, bands } = seriesOf(chart);
    const axis = { stroke: colour("--soft"), grid: { stroke: colour("--grid"), width: 1 }, ticks: { stroke: colour("--grid") } };
    const [low, high] = chart.limits || [null, null];
    const plot = new uPlot({
      width: Math.max(260, box.clientWidth), height: 240, series, bands,
      scales: { x: { time: false }, y: { range: (_, least, most) => {
        if (least === null) return [0, 1];
        const room = (most - least || Math.abs(most) || 1) * 0.08;
        return [low === null ? least - room : Math.min(low, least), high === null ? most + room : Math.max(high, most) + (high === null ? 0 : room / 4)];
      } } },
      axes: [{ ...axis }, { ...axis, size: 58, values: (_, ticks) => ticks.map(atAxis) }],
      cursor: { sync: chart.raw ? undefined : { key: "steps" }, drag: { x: true, y: false } },
      legend: { live: true },
    }, columns, target);
    drawn.push({ plot, box });
  }

  function drawAll() {
    for (const { plot, box } of drawn.splice(0)) { plot.destroy(); box.remove(); }
    for (const place of document.querySelectorAll(".charts[data-question]")) {
      for (const chart of data.charts[place.dataset.question] || []) draw(chart, place);
    }
    if (data.path) {
      const section = document.getElementById("path");
      section.hidden = false;
      const points = [...data.path.points].sort((a, b) => a[0] - b[0]);
      draw({
        title: "", unit: `${data.path.names[1]} (up) against ${data.path.names[0]} (right)`, raw: true, xLabel: data.path.names[0],
        x: points.map((p) => p[0]), series: [{ label: data.path.names[1], y: points.map((p) => p[1]) }],
      }, section.querySelector(".charts"));
    }
    if (data.frontier) drawFrontier();
  }

  function drawFrontier() {
    const place = document.getElementById("frontier");
    const points = [...data.frontier.points].sort((a, b) => a.cost - b.cost);
    draw({
      title: "", unit: `${data.frontier.gain} (up) against ${data.frontier.cost} (right)`, raw: true, xLabel: data.frontier.cost,
      x: points.map((p) => p.cost),
      series: points.map((p, i) => ({ label: p.name, y: points.map((_, j) => (i === j ? p.gain : null)) })),
    }, place);
  }

  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    for (const { plot, box } of drawn) plot.setSize({ width: Math.max(260, box.clientWidth), height: 240 });
    drawWays();
  });
  const scheme = window.matchMedia("(prefers-color-scheme: dark)");
  scheme.addEventListener("change", () => { drawAll(); drawWays(); });
  window.matchMedia("print").addEventListener("change", () => { drawAll(); drawWays(); });

  // --- before and after

  const list = document.getElementById("compared");
  const PAGE = 20;
  let limit = PAGE;
  const ORDERS = {
    change: (a, b) => b.dataset.change - a.dataset.change,
    better: (a, b) => b.dataset.gain - a.dataset.gain,
    worse: (a, b) => a.dataset.gain - b.dataset.gain,
  };
  function page() {
    if (!list) return;
    const wanted = document.getElementById("search").value.toLowerCase();
    let seen = 0, hidden = 0;
    for (const one of list.children) {
      const fits = !wanted || one.textContent.toLowerCase().includes(wanted);
      seen += fits ? 1 : 0;
      one.hidden = !fits || seen > limit;
      hidden += fits && one.hidden ? 1 : 0;
    }
    const more = document.getElementById("more");
    more.hidden = hidden === 0;
    more.textContent = `show more (${hidden})`;
  }
  function sortBy(name) {
    for (const button of document.querySelectorAll("[data-sort]")) button.setAttribute("aria-pressed", button.dataset.sort === name);
    list.append(...[...list.children].sort(ORDERS[name]));
    limit = PAGE;
    page();
  }
  if (list) {
    for (const button of document.querySelectorAll("[data-sort]")) button.addEventListener("click", () => sortBy(button.dataset.sort));
    document.getElementById("search").addEventListener("input", page);
    document.getElementById("more").addEventListener("click", () => { limit += 5 * PAGE; page(); });
    page();
    window.addEventListener("beforeprint", () => { limit = 40; page(); });
  }
  function goTo(key) {
    const found = list && [...list.children].find((one) => one.dataset.key === key);
    if (!found) return false;
    document.getElementById("search").value = "";
    for (const one of list.querySelectorAll(".marked")) one.classList.remove("marked");
    found.classList.add("marked");
    list.prepend(found);
    page();
    found.scrollIntoView({ block: "center" });
    return true;
  }

  // --- what it learned

  const canvas = document.getElementById("ways");
  const ROW = 7;
  let onlyWay = "", rows = [];
  function drawWays() {
    if (!canvas || !data.ways) return;
    const every = Math.ceil(data.ways.steps.length / (canvas.parentElement.clientWidth / 60));
    document.getElementById("waysteps").replaceChildren(
      ...data.ways.steps.map((step, i) => element("span", i % every === 0 ? step : "")),
    );
    rows = data.ways.rows.filter((row) => !onlyWay || row.way === onlyWay);
    const columns = data.ways.steps.length, ratio = window.devicePixelRatio || 1;
    const across = canvas.parentElement.clientWidth, down = Math.max(1, rows.length) * ROW;
    canvas.style.width = `${across}px`;
    canvas.style.height = `${down}px`;
    canvas.width = across * ratio;
    canvas.height = down * ratio;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const all = data.ways.rows.flatMap((row) => row.values).filter((value) => value !== null);
    const negative = all.some((value) => value < 0);
    const most = Math.max(1e-9, ...all.map(Math.abs));
    const good = colour("--good"), bad = colour("--bad"), none = colour("--grid");
    rows.forEach((row, y) => row.values.forEach((value, x) => {
      const part = value === null ? 0 : negative ? value / most : 2 * value - 1;
      pen.globalAlpha = value === null ? 1 : 0.15 + 0.85 * Math.min(1, Math.abs(part));
      pen.fillStyle = value === null ? none : part >= 0 ? good : bad;
      pen.fillRect((x * across) / columns, y * ROW, Math.ceil(across / columns) - 1, ROW - 1);
    }));
  }
  function pointedAt(event) {
    const box = canvas.getBoundingClientRect();
    const row = rows[Math.floor((event.clientY - box.top) / ROW)];
    const column = Math.min(data.ways.steps.length - 1, Math.floor(((event.clientX - box.left) / box.width) * data.ways.steps.length));
    return row ? { row, column } : null;
  }
  if (canvas && data.ways) {
    const info = document.getElementById("wayinfo");
    canvas.addEventListener("mousemove", (event) => {
      const at = pointedAt(event);
      if (!at) return;
      const step = data.ways.steps[at.column];
      info.textContent = `${at.row.key}: ${at.row.way}; ${/^\d/.test(step) ? "step " : ""}${step}: ${shown(at.row.values[at.column])}`;
    });
    canvas.addEventListener("click", (event) => {
      const at = pointedAt(event);
      if (at && !goTo(at.row.key)) info.textContent = `${at.row.key}: its answers are not in this page, but in samples.jsonl`;
    });
    for (const button of document.querySelectorAll("[data-way]")) {
      button.addEventListener("click", () => {
        onlyWay = button.dataset.way;
        for (const other of document.querySelectorAll("[data-way]")) other.setAttribute("aria-pressed", other === button);
        drawWays();
      });
    }
  }

  // --- completions of a step

  const slider = document.getElementById("step");
  function showStep() {
    const { step, groups } = data.transcripts[Number(slider.value)];
    document.getElementById("stepnumber").textContent = step;
    const place = document.getElementById("groups");
    place.replaceChildren();
    for (const group of groups) {
      const article = element("article");
      article.append(element("h3", group.prompt));
      if (group.reason) article.append(element("p", `not learned from: ${group.reason}`, "reason"));
      for (const one of group.completions) {
        const worth = one.advantage !== undefined ? one.advantage : 0;
        const box = element("div", undefined, `completion ${worth > 0 ? "up" : worth < 0 ? "down" : ""}`);
        const advantage = one.advantage === undefined ? "" : `, advantage ${shown(one.advantage)}`;
        box.append(element("p", one.text, "text"), element("p", `score ${shown(one.score)}${advantage}, ${one.tokens} tokens${one.finished ? "" : ", cut"}`, "note"));
        article.append(box);
      }
      article.append(element("p", group.key, "note"));
      place.append(article);
    }
  }
  if (slider) {
    slider.addEventListener("input", showStep);
    showStep();
  }

  drawAll();
  drawWays();
  document.documentElement.dataset.ready = "yes";
})();
