"use strict";
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 520px)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Charts: what the page knows of colours and width is laid over what the report says of a chart.
  const themed = (layout) => {
    const made = structuredClone(layout);
    Object.assign(made, { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true });
    made.font = { family: "system-ui, sans-serif", size: narrow.matches ? 11 : 12.5, color: colour("--ink"), ...made.font };
    made.hoverlabel = { bgcolor: colour("--head"), bordercolor: colour("--line"), font: { color: colour("--ink") }, align: "left" };
    for (const key of Object.keys(made).filter((k) => /^[xy]axis\d*$/.test(k))) {
      Object.assign(made[key], { gridcolor: colour("--line"), linecolor: colour("--soft"), zerolinecolor: colour("--line"), automargin: true });
    }
    for (const shape of made.shapes || []) shape.line = { ...shape.line, color: colour("--soft") };
    return made;
  };
  const charts = [...document.querySelectorAll("script[data-of]")].map((script) => ({
    place: document.getElementById(script.dataset.of),
    spec: JSON.parse(script.textContent),
  }));
  const draw = ({ place, spec }) =>
    void Plotly.react(place, structuredClone(spec.data), themed(spec.layout), {
      responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false, doubleClick: "reset",
    });
  // Legends: a button for each name, which shows and hides all that has it.
  for (const { place, spec } of charts) {
    const names = [...new Set(spec.data.map((trace) => trace.name).filter(Boolean))];
    if (names.length < 2) continue;
    const legend = document.createElement("div");
    legend.className = "legend";
    for (const name of names) {
      const of = spec.data.filter((trace) => (trace.legendgroup || trace.name) === name);
      const { line = {}, marker = {} } = of.find((trace) => trace.name);
      const button = document.createElement("button");
      const swatch = document.createElement("i");
      const isPoint = marker.color !== undefined;
      swatch.className = isPoint ? "point" : "line";
      swatch.style.borderColor = isPoint ? marker.color : line.color;
      swatch.style.borderTopStyle = isPoint ? "solid" : { dot: "dotted", dash: "dashed", dashdot: "dashed" }[line.dash] || "solid";
      button.append(swatch, name);
      const tell = () => button.setAttribute("aria-pressed", String(of[0].visible !== false));
      button.addEventListener("click", () => {
        const isShown = of[0].visible === false;
        for (const trace of of) trace.visible = isShown;
        tell();
        draw({ place, spec });
      });
      tell();
      legend.append(button);
    }
    place.after(legend);
  }
  const watch = new IntersectionObserver((seen) => {
    for (const { isIntersecting, target } of seen.filter((entry) => entry.isIntersecting)) {
      watch.unobserve(target);
      const chart = charts.find(({ place }) => place === target);
      chart.isDrawn = true;
      draw(chart);
    }
  }, { rootMargin: "600px" });
  charts.forEach(({ place }) => watch.observe(place));
  const drawAll = (all) => charts.filter((chart) => all || chart.isDrawn).forEach((chart) => { chart.isDrawn = true; draw(chart); });
  dark.addEventListener("change", () => drawAll(false));
  narrow.addEventListener("change", () => drawAll(false));
  addEventListener("beforeprint", () => drawAll(true));

  // Tables: a click on a head, or Enter, sorts by the first number of each cell, or else by its text.
  const value = (row, place) => {
    const text = row.cells[place].textContent.trim();
    const number = text.replace(/,/g, "").replace(/[−–](?=[\d.])/g, "-").match(/^[<+]?(-?\d*\.?\d+)/);
    return number ? [0, parseFloat(number[1])] : text === "" || text === "–" ? [2, ""] : [1, text.toLowerCase()];
  };
  const compare = (a, b) => a[0] - b[0] || (a[1] < b[1] ? -1 : a[1] > b[1] ? 1 : 0);
  for (const table of document.querySelectorAll("[data-sortable] table")) {
    const body = table.tBodies[0];
    const heads = [...table.querySelectorAll("thead th[scope=col]")];
    const left = (head) => head.getBoundingClientRect().left;
    heads.sort((a, b) => left(a) - left(b)).forEach((head, place) => {
      head.setAttribute("aria-sort", "none");
      head.tabIndex = 0;
      const sort = () => {
        const way = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", way);
        const sign = way === "ascending" ? 1 : -1;
        const groups = [[]]; // rows under one head stay under it
        for (const row of body.rows) row.classList.contains("gt_group_heading_row") ? groups.push([row]) : groups.at(-1).push(row);
        for (const group of groups) {
          const isHeaded = group.length && group[0].classList.contains("gt_group_heading_row");
          const rows = (isHeaded ? group.slice(1) : group).map((row) => [value(row, place), row]);
          rows.sort(([a], [b]) => (a[0] === 2 || b[0] === 2 ? a[0] - b[0] : sign * compare(a, b)));
          body.append(...(isHeaded ? [group[0]] : []), ...rows.map(([, row]) => row));
        }
      };
      head.addEventListener("click", sort);
      head.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); } });
    });
  }

  // Contents: where the reader is.
  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const nav = document.querySelector("nav");
  const here = new IntersectionObserver((seen) => {
    for (const entry of seen.filter((e) => e.isIntersecting)) {
      links.forEach((link) => link.classList.remove("here"));
      const link = links.get(entry.target.id);
      link.classList.add("here");
      if (nav.scrollWidth > nav.clientWidth) nav.scrollLeft = link.offsetLeft - 24;
    }
  }, { rootMargin: "-15% 0px -75% 0px" });
  document.querySelectorAll("section").forEach((section) => here.observe(section));
})();
