"use strict";
(() => {
  const canvas = document.getElementById("canvas");
  const stage = document.getElementById("stage");
  const tip = document.getElementById("tip");
  const boxes = new Map([...stage.querySelectorAll(".box")].map((box) => [box.id, box]));
  const arrows = [...stage.querySelectorAll(".arrow")];
  const width = Number(canvas.dataset.width), height = Number(canvas.dataset.height);
  const MARGIN = 24, READABLE = 0.78;
  let scale = 1, left = 0, top = 0;

  const place = () => stage.setAttribute("transform", `translate(${left},${top}) scale(${scale})`);
  const room = () => canvas.getBoundingClientRect();

  // A picture too tall to be read whole starts at its top at a readable size.
  function fit(smallest) {
    const { width: w, height: h } = room();
    const whole = Math.min((w - 2 * MARGIN) / width, (h - 2 * MARGIN) / height, 1.25);
    scale = Math.max(whole, Math.min(smallest, (w - 2 * MARGIN) / width));
    left = (w - width * scale) / 2;
    top = scale > whole ? MARGIN : Math.max(MARGIN, (h - height * scale) / 2);
    place();
  }

  function zoom(factor, x, y) {
    const next = Math.min(Math.max(scale * factor, 0.03), 4);
    left = x - (x - left) * next / scale;
    top = y - (y - top) * next / scale;
    scale = next;
    place();
  }

  const middle = (factor) => { const { width: w, height: h } = room(); zoom(factor, w / 2, h / 2); };

  canvas.removeAttribute("viewBox"); // without scripts the viewBox shows all of it
  fit(READABLE);
  window.addEventListener("resize", () => fit(READABLE));
  document.getElementById("whole").addEventListener("click", () => fit(0));
  document.getElementById("nearer").addEventListener("click", () => middle(1.3));
  document.getElementById("farther").addEventListener("click", () => middle(1 / 1.3));

  const scrolls = canvas.dataset.wheel === "scrolls"; // within a longer page the plain wheel is the page's
  canvas.addEventListener("wheel", (event) => {
    if (scrolls && !event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const { left: x, top: y } = room();
    if (event.ctrlKey || event.metaKey || !event.shiftKey && Math.abs(event.deltaY) > Math.abs(event.deltaX)) {
      zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0016)), event.clientX - x, event.clientY - y);
    } else {
      left -= event.deltaX || event.deltaY;
      place();
    }
  }, { passive: false });

  const held = new Map();
  let moved = 0, spread = 0;
  const distance = () => { const [a, b] = [...held.values()]; return Math.hypot(a.x - b.x, a.y - b.y); };
  canvas.addEventListener("pointerdown", (event) => {
    held.set(event.pointerId, { x: event.clientX, y: event.clientY });
    moved = 0;
    if (held.size === 2) spread = distance();
  });
  window.addEventListener("pointermove", (event) => {
    const last = held.get(event.pointerId);
    if (!last) return;
    if (held.size === 1) {
      left += event.clientX - last.x;
      top += event.clientY - last.y;
      moved += Math.abs(event.clientX - last.x) + Math.abs(event.clientY - last.y);
      if (moved > 4) { canvas.classList.add("dragged"); tip.hidden = true; }
      place();
    }
    held.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (held.size === 2) {
      const { left: x, top: y } = room();
      const [a, b] = [...held.values()];
      zoom(distance() / spread, (a.x + b.x) / 2 - x, (a.y + b.y) / 2 - y);
      spread = distance();
    }
  });
  for (const name of ["pointerup", "pointercancel"]) {
    window.addEventListener(name, (event) => { held.delete(event.pointerId); canvas.classList.remove("dragged"); });
  }

  // Picking: what is chosen and its neighbours stay bright, and its uses beside the picture are marked.
  const keysOf = (element) => element.dataset.boxes.split(" ").filter(Boolean);
  function pick(keys, scroll) {
    const chosen = new Set(keys), near = new Set(keys);
    stage.classList.toggle("picked", chosen.size > 0);
    for (const arrow of arrows) {
      const { source, target } = arrow.dataset;
      const touches = chosen.has(source) || chosen.has(target);
      arrow.classList.toggle("near", touches);
      if (touches) near.add(source).add(target);
    }
    for (const [key, box] of boxes) {
      box.classList.toggle("chosen", chosen.has(key));
      box.classList.toggle("near", near.has(key));
    }
    let first = null;
    for (const element of document.querySelectorAll(".group, .use")) {
      const hit = keysOf(element).some((key) => chosen.has(key));
      element.classList.toggle("chosen", hit);
      if (hit && !first) first = element;
    }
    if (scroll && first) first.scrollIntoView({ block: "nearest" });
  }

  function show(key) { // brings a box into sight
    const box = boxes.get(key);
    if (!box) return;
    const outer = room(), inner = box.getBoundingClientRect();
    const outside = inner.left < outer.left || inner.right > outer.right || inner.top < outer.top ||
      inner.bottom > outer.bottom;
    if (!outside) return;
    left += outer.left + outer.width / 2 - (inner.left + inner.right) / 2;
    top += outer.top + outer.height / 2 - (inner.top + inner.bottom) / 2;
    place();
  }

  for (const [key, box] of boxes) {
    box.addEventListener("click", (event) => {
      event.stopPropagation();
      if (moved <= 4) pick(box.classList.contains("chosen") ? [] : [key], true);
    });
    box.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pick([key], true); }
    });
    const told = () => {
      tip.replaceChildren(document.querySelector(`template[data-tip="${key}"]`).content.cloneNode(true));
      tip.hidden = false;
      const at = box.getBoundingClientRect(), size = tip.getBoundingClientRect();
      let x = at.right + 10, y = at.top;
      if (x + size.width > room().right) x = at.left - size.width - 10;
      if (x < 8) { x = Math.max(8, Math.min(at.left, innerWidth - size.width - 8)); y = at.bottom + 10; }
      tip.style.left = `${x}px`;
      tip.style.top = `${Math.max(8, Math.min(y, innerHeight - size.height - 8))}px`;
    };
    box.addEventListener("pointerenter", told);
    box.addEventListener("focus", () => { if (box.matches(":focus-visible")) { show(key); told(); } });
    for (const name of ["pointerleave", "blur"]) box.addEventListener(name, () => { tip.hidden = true; });
  }
  for (const element of document.querySelectorAll(".pick")) {
    element.addEventListener("click", () => {
      const keys = keysOf(element);
      pick(keys, false);
      if (keys.length) show(keys[0]);
    });
  }
  canvas.addEventListener("click", () => { if (moved <= 4) pick([], false); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") pick([], false);
    if (event.target.closest(".sites")) return;
    if (event.key === "+") middle(1.3);
    if (event.key === "-") middle(1 / 1.3);
    if (event.key === "0") fit(0);
  });
})();
