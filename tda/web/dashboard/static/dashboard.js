"use strict";

// A slider over commits: everything that names a stop is shown or hidden with it.
for (const block of document.querySelectorAll("[data-slider]")) {
  const range = block.querySelector("input[type=range]");
  if (!range) continue;
  const layers = [...block.querySelectorAll("[data-stop]")];
  const show = (stop) => {
    range.value = Math.min(Math.max(stop, Number(range.min)), Number(range.max));
    for (const layer of layers) {
      const here = layer.dataset.stop === range.value;
      layer.toggleAttribute("hidden", !here);
      if (here && layer.dataset.label) range.setAttribute("aria-valuetext", layer.dataset.label);
    }
    for (const step of block.querySelectorAll("[data-step]")) {
      step.disabled = range.value === (step.dataset.step === "1" ? range.max : range.min);
    }
  };
  range.addEventListener("input", () => show(Number(range.value)));
  for (const button of block.querySelectorAll("[data-step]")) {
    button.addEventListener("click", () => show(Number(range.value) + Number(button.dataset.step)));
  }
  for (const button of block.querySelectorAll("[data-go]")) {
    button.addEventListener("click", () => show(Number(button.dataset.go)));
  }
  block.querySelector(".controls").removeAttribute("hidden");
  show(Number(range.value));
}

// A static page cannot know how old it is when it is read.
for (const time of document.querySelectorAll("time[datetime]")) {
  const hours = (Date.now() - Date.parse(time.dateTime)) / 3.6e6;
  if (!Number.isFinite(hours)) continue;
  time.title = `${new Date(time.dateTime).toLocaleString()} here`;
  const ago = hours < 48 ? `${Math.round(hours)} hours ago` : `${Math.round(hours / 24)} days ago`;
  if (time.dataset.lateHours === undefined) continue;
  const note = document.createElement("span");
  const late = hours > Number(time.dataset.lateHours);
  note.className = late ? "alert-text" : "note";
  note.textContent = late ? ` (${ago}: a night is missing)` : ` (${ago})`;
  time.after(note);
}
