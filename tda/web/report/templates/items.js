"use strict";
const PAGE = 50; // items on one page
const sheets = JSON.parse(document.getElementById("sheets").textContent);
const [task, changed, place, list, notes] = ["task", "changed", "place", "items", "notes"].map((id) => document.getElementById(id));
const TAGS = { same: "span", added: "ins", removed: "del" };
let first = 0;

const make = (tag, words, ...children) => {
  const element = document.createElement(tag);
  if (words) element.textContent = words;
  element.append(...children);
  return element;
};

const heading = (words) => {
  const cell = make("th", words);
  cell.scope = "col";
  return cell;
};

const answerRow = (label, answer) => {
  const name = make("th", label);
  name.scope = "row";
  if (answer === null) {
    const none = make("td", "– (no answer was kept)");
    none.colSpan = 4;
    return make("tr", "", name, none);
  }
  const words = make("td", "", ...answer.parts.map(([kind, text]) => make(TAGS[kind], text)));
  words.className = "answer";
  const row = make("tr", "", name, words, ...[answer.scores, answer.likelihoods, answer.tokens].map((text) => make("td", text || "–")));
  row.className = answer.changed ? "changed" : answer.same_question ? "" : "other";
  if (!answer.same_question) words.append(make("div", "(another prompt or target: not compared)"));
  return row;
};

const article = (sheet, item) => {
  const table = make("table", "",
    make("thead", "", make("tr", "", ...["case", "answer", "scores", "log-likelihoods (nats)", "tokens computed sparsely"].map(heading))),
    make("tbody", "", ...item.answers.map((answer, number) => answerRow(sheet.cases[number], answer))));
  table.querySelectorAll("th")[1].className = "answer";
  const prompt = make("details", "", make("summary", `Prompt (${item.prompt.length} characters), ends in: ${item.prompt.slice(-90)}`), make("pre", item.prompt));
  const whole = make("article", "", make("h2", `Item ${item.number}`), prompt, make("p", `Right answer: ${item.target}`), make("div", "", table));
  whole.className = "item";
  return whole;
};

const show = () => {
  const sheet = sheets[Number(task.value)];
  const found = sheet.items.filter((item) => item.changed || !changed.checked);
  first = Math.max(0, Math.min(first, Math.floor((found.length - 1) / PAGE) * PAGE));
  const shown = found.slice(first, first + PAGE);
  place.textContent = shown.length ? `${first + 1}–${first + shown.length} of ${found.length}` : "no item";
  document.getElementById("before").disabled = first === 0;
  document.getElementById("after").disabled = first + PAGE >= found.length;
  notes.replaceChildren(...sheet.notes.map((note) => make("li", note)));
  list.replaceChildren(...shown.map((item) => article(sheet, item)));
};

const turn = (step) => () => {
  first += step;
  show();
  window.scrollTo(0, 0);
};
document.getElementById("before").addEventListener("click", turn(-PAGE));
document.getElementById("after").addEventListener("click", turn(PAGE));
for (const control of [task, changed]) control.addEventListener("change", () => { first = 0; show(); });
document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
show();
