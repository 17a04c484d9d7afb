// A transcript that goes with its audio: the word that is heard is marked, and a click or Enter goes to a word.

/** Parts of `text` with their times, and what stands between them, which has none. */
export function timed(text, units) {
  const parts = [];
  let at = 0;
  for (const { text: wanted, start, end } of units) {
    const found = text.indexOf(wanted, at);
    if (found < 0) continue;
    if (found > at) parts.push({ text: text.slice(at, found) });
    parts.push({ text: wanted, start, end });
    at = found + wanted.length;
  }
  if (at < text.length) parts.push({ text: text.slice(at) });
  return parts;
}

export class Reader {
  constructor(container, player) {
    this.container = container;
    this.player = player;
    this.words = [];
    container.addEventListener("click", (event) => this.#seek(event.target));
    container.addEventListener("keydown", (event) => this.#key(event));
    player.addEventListener("play", () => this.#follow());
    for (const name of ["seeked", "pause"]) player.addEventListener(name, () => this.#mark());
  }

  show(parts) {
    const nodes = parts.map((part) => (part.start === undefined ? part.text : this.#word(part)));
    this.container.replaceChildren(...nodes);
    this.words = [...this.container.children];
    if (this.words.length) this.words[0].tabIndex = 0;
  }

  #word({ text, start, end }) {
    const word = document.createElement("span");
    word.className = "word";
    word.textContent = text;
    word.setAttribute("role", "button");
    word.tabIndex = -1;
    word.dataset.start = start;
    word.dataset.end = end;
    return word;
  }

  #follow() {
    this.#mark();
    if (!this.player.paused && !this.player.ended) requestAnimationFrame(() => this.#follow());
  }

  #mark() {
    const now = this.player.currentTime;
    for (const word of this.words) {
      word.classList.toggle("now", Number(word.dataset.start) <= now && now < Number(word.dataset.end));
    }
  }

  #seek(word) {
    if (!this.words.includes(word)) return;
    this.#focus(word);
    this.player.currentTime = Number(word.dataset.start);
  }

  #key(event) {
    const at = this.words.indexOf(event.target);
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: this.words.length - 1 }[event.key];
    if (event.key === "Enter" || event.key === " ") this.#seek(event.target);
    else if (next === undefined) return;
    else this.#focus(this.words[next]);
    event.preventDefault();
  }

  #focus(word) {
    if (!word) return;
    for (const each of this.words) each.tabIndex = each === word ? 0 : -1;
    word.focus();
  }
}
