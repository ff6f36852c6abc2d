// Values under the pointer. The page is whole without this: data-hover holds, for each place along a
// chart, [x, its text, [[class, name, text, y], ...]].
"use strict";
for (const svg of document.querySelectorAll("svg[data-hover]")) {
  const points = JSON.parse(svg.dataset.hover);
  const view = svg.viewBox.baseVal;
  const marks = document.createElementNS(svg.namespaceURI, "g");
  const tip = Object.assign(document.createElement("div"), { className: "tip", hidden: true });
  svg.append(marks);
  svg.parentElement.append(tip);

  function draw(tag, attributes) {
    const node = document.createElementNS(svg.namespaceURI, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    marks.append(node);
  }

  function line(...content) {
    const node = document.createElement("div");
    node.append(...content);
    return node;
  }

  function show(event) {
    const box = svg.getBoundingClientRect(), scale = view.width / box.width;
    const at = (event.clientX - box.left) * scale;
    const [x, label, rows] = points.reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a));
    marks.replaceChildren();
    draw("path", { class: "rule", d: `M${x},10V${view.height - 34}` });
    for (const [kind, , , y] of rows) if (y !== null) draw("circle", { class: `dot ${kind}`, cx: x, cy: y, r: 4 });
    tip.replaceChildren(line(label), ...rows.map(([kind, name, text]) => {
      return line(Object.assign(document.createElement("i"), { className: kind }), `${name} ${text}`);
    }));
    tip.hidden = false;
    const card = svg.parentElement.getBoundingClientRect();
    const place = box.left - card.left + x / scale;
    const left = place + 12 + tip.offsetWidth > card.width ? place - 12 - tip.offsetWidth : place + 12;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${box.top - card.top + 8}px`;
  }

  function hide() {
    marks.replaceChildren();
    tip.hidden = true;
  }

  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);
}
