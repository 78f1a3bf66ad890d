// Crosshair and tooltip of the charts: finds each line's point nearest to the pointer. The page is whole without this script.
"use strict";
(() => {
  const tip = document.getElementById("tip");
  const svgNames = "http://www.w3.org/2000/svg";

  const nearest = (points, x) => {
    let low = 0, high = points.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (points[middle][1] < x) low = middle; else high = middle;
    }
    return Math.abs(points[low][1] - x) <= Math.abs(points[high][1] - x) ? points[low] : points[high];
  };

  const line = (name, value, colour) => {
    const row = document.createElement("div");
    const key = document.createElement("i");
    key.className = "key";
    if (colour) key.style.background = `var(--c${(colour - 1) % 6 + 1})`;
    const label = document.createElement("span");
    label.textContent = name;
    const number = document.createElement("b");
    number.textContent = value;
    row.append(...(colour ? [key] : []), label, number);
    return row;
  };

  for (const chart of document.querySelectorAll("svg.chart")) {
    const series = JSON.parse(chart.dataset.chart).filter((s) => s.points.length);
    if (!series.length) continue;
    const cross = document.createElementNS(svgNames, "g");
    cross.setAttribute("class", "cross");
    chart.append(cross);

    const leave = () => { cross.replaceChildren(); tip.hidden = true; };
    chart.addEventListener("pointerleave", leave);
    chart.addEventListener("pointermove", (event) => {
      const box = chart.getBoundingClientRect();
      const x = (event.clientX - box.left) * chart.viewBox.baseVal.width / box.width;
      const found = series.map((s) => [s, nearest(s.points, x)]);
      const lead = found.reduce((a, b) => Math.abs(b[1][1] - x) < Math.abs(a[1][1] - x) ? b : a)[1];

      const rule = document.createElementNS(svgNames, "line");
      for (const [name, value] of [["x1", lead[1]], ["x2", lead[1]], ["y1", chart.dataset.top], ["y2", chart.dataset.bottom]])
        rule.setAttribute(name, value);
      const dots = found.map(([s, p]) => {
        const dot = document.createElementNS(svgNames, "circle");
        for (const [name, value] of [["cx", p[1]], ["cy", p[2]], ["r", 3.5]]) dot.setAttribute(name, value);
        dot.style.fill = `var(--c${(s.colour - 1) % 6 + 1})`;
        return dot;
      });
      cross.replaceChildren(rule, ...dots);

      const head = document.createElement("div");
      head.className = "at";
      head.textContent = `step ${lead[0].toLocaleString("en")}`;
      const named = ([s, p]) => p[0] === lead[0] ? s.name : `${s.name} (step ${p[0]})`;
      tip.replaceChildren(head, ...found.map((pair) => line(named(pair), pair[1][3], pair[0].colour)));
      tip.hidden = false;
      const wide = tip.offsetWidth, tall = tip.offsetHeight;
      const left = event.clientX + 16 + wide > innerWidth ? event.clientX - 16 - wide : event.clientX + 16;
      const top = Math.min(event.clientY + 12, innerHeight - tall - 4);
      tip.style.transform = `translate(${Math.max(4, left)}px, ${Math.max(4, top)}px)`;
    });
  }
})();
