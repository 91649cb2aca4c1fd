"use strict";
(() => {
  const canvas = document.querySelector(".canvas"), drawing = canvas.querySelector("svg");
  const tip = document.getElementById("tip");
  const boxes = new Map([...drawing.querySelectorAll(".node")].map((box) => [box.id, box]));
  const arrows = [...drawing.querySelectorAll(".edge")].map((arrow) =>
    [arrow, ...arrow.querySelector("title").textContent.split("->")]);
  const { width, height } = drawing.viewBox.baseVal;
  const READABLE = 0.78, MARGIN = 48;
  let scale = 1;

  // What lies at the place (x, y) of the canvas, its middle where left out, stays there.
  function zoom(next, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
    const frame = canvas.getBoundingClientRect(), before = drawing.getBoundingClientRect();
    scale = Math.min(Math.max(next, 0.03), 4);
    drawing.style.width = `${width * scale}px`;
    drawing.style.height = `${height * scale}px`;
    const after = drawing.getBoundingClientRect();
    canvas.scrollBy(after.left - frame.left - x + (frame.left + x - before.left) * after.width / before.width,
      after.top - frame.top - y + (frame.top + y - before.top) * after.height / before.height);
  }

  // A picture too tall to be read whole starts at its top at a readable size.
  function fit(smallest) {
    const across = (canvas.clientWidth - MARGIN) / width, down = (canvas.clientHeight - MARGIN) / height;
    zoom(Math.max(Math.min(across, down, 1.25), Math.min(smallest, across)));
    canvas.scrollTo((canvas.scrollWidth - canvas.clientWidth) / 2, 0);
  }

  drawing.style.maxWidth = "none"; // without scripts it is as wide as the page
  fit(READABLE);
  window.addEventListener("resize", () => fit(READABLE));
  document.getElementById("whole").addEventListener("click", () => fit(0));
  document.getElementById("nearer").addEventListener("click", () => zoom(scale * 1.3));
  document.getElementById("farther").addEventListener("click", () => zoom(scale / 1.3));
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return; // the plain wheel scrolls
    event.preventDefault();
    const frame = canvas.getBoundingClientRect();
    zoom(scale * Math.exp(-event.deltaY * 0.005), event.clientX - frame.left, event.clientY - frame.top);
  }, { passive: false });

  let moved = 0; // pixels since the mouse was pressed: a drag is no click
  canvas.addEventListener("pointerdown", () => { moved = 0; });
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerType !== "mouse" || event.buttons !== 1) return;
    moved += Math.abs(event.movementX) + Math.abs(event.movementY);
    canvas.scrollBy(-event.movementX, -event.movementY);
    tip.hidden = true;
  });

  // Picking: what is chosen and its neighbours stay bright, and its uses beside the picture are marked.
  const keysOf = (element) => element.dataset.boxes.split(" ").filter(Boolean);
  function pick(keys, scroll) {
    const chosen = new Set(keys), near = new Set(keys);
    drawing.classList.toggle("picked", chosen.size > 0);
    for (const [arrow, source, target] of arrows) {
      const touches = chosen.has(source) || chosen.has(target);
      arrow.classList.toggle("near", touches);
      if (touches) near.add(source).add(target);
    }
    for (const [key, box] of boxes) {
      box.classList.toggle("chosen", chosen.has(key));
      box.classList.toggle("near", near.has(key));
    }
    for (const element of document.querySelectorAll(".group, .use")) {
      element.classList.toggle("chosen", keysOf(element).some((key) => chosen.has(key)));
    }
    if (scroll) document.querySelector(".sites .chosen")?.scrollIntoView({ block: "nearest" });
  }

  for (const [key, box] of boxes) {
    const link = box.querySelector("a"), [name, ...facts] = link.getAttribute("xlink:title").split("\n");
    box.setAttribute("aria-label", [name, ...facts].join(". "));
    box.setAttribute("role", "button");
    box.setAttribute("tabindex", "0");
    link.removeAttribute("xlink:title"); // or else the browser would tell it as well
    box.addEventListener("click", (event) => {
      event.stopPropagation();
      if (moved <= 4) pick(box.classList.contains("chosen") ? [] : [key], true);
    });
    box.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pick([key], true); }
    });
    const made = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });
    const tell = () => {
      const list = document.createElement("dl");
      for (const fact of facts) {
        const end = fact.indexOf(": ");
        list.append(made("dt", fact.slice(0, end)), made("dd", fact.slice(end + 2)));
      }
      tip.replaceChildren(made("b", name), list);
      tip.hidden = false;
      const at = box.getBoundingClientRect(), size = tip.getBoundingClientRect();
      let x = at.right + 10, y = at.top;
      if (x + size.width > canvas.getBoundingClientRect().right) x = at.left - size.width - 10;
      if (x < 8) { x = Math.max(8, Math.min(at.left, innerWidth - size.width - 8)); y = at.bottom + 10; }
      tip.style.left = `${x}px`;
      tip.style.top = `${Math.max(8, Math.min(y, innerHeight - size.height - 8))}px`;
    };
    box.addEventListener("pointerenter", tell);
    box.addEventListener("focus", () => { if (box.matches(":focus-visible")) tell(); });
    for (const event of ["pointerleave", "blur"]) box.addEventListener(event, () => { tip.hidden = true; });
  }
  for (const element of document.querySelectorAll(".pick")) {
    element.addEventListener("click", () => {
      const keys = keysOf(element);
      pick(keys, false);
      boxes.get(keys[0])?.scrollIntoView({ block: "nearest", inline: "nearest" });
    });
  }
  canvas.addEventListener("click", () => { if (moved <= 4) pick([], false); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") pick([], false);
    if (event.target.closest(".sites")) return;
    if (event.key === "+") zoom(scale * 1.3);
    if (event.key === "-") zoom(scale / 1.3);
    if (event.key === "0") fit(0);
  });
})();
