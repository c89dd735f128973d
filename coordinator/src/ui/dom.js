// Elements, and a list of which only the rows in view are elements.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

export function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Text that is there already is left alone: a selection survives it, and nothing is laid out anew.
export function say(node, text) {
  const said = String(text);
  if (node.textContent !== said) node.textContent = said;
}

export function mark(node, name, value) {
  const said = String(value);
  if (node.getAttribute(name) !== said) node.setAttribute(name, said);
}

export function button(label, title, act, className = "") {
  const made = element("button", className, label);
  made.type = "button";
  if (title) made.title = title;
  made.addEventListener("click", (event) => {
    event.stopPropagation();
    act(event);
  });
  return made;
}

// A bar of one part, or of several beside each other, each of a share of the whole.
export class Bar {
  constructor(label, ...kinds) {
    this.parts = kinds.map((kind) => element("i", kind));
    this.element = element("span", "bar", ...this.parts);
    this.element.setAttribute("role", "img");
    this.label = label;
  }

  show(shares, said) {
    shares.forEach((share, number) => {
      const width = `${(Math.max(0, Math.min(1, share)) * 100).toFixed(1)}%`;
      const { style } = this.parts[number];
      if (style.width !== width) style.width = width;
    });
    mark(this.element, "aria-label", `${this.label}: ${said}`);
    mark(this.element, "title", said);
  }
}

// Rows of one height. Of however many items, those in view have elements, which are used again.
export class Rows {
  // `build()` makes a row: { element, show(item) }.
  constructor(host, { height, max, build, open, empty }) {
    // Where it is scrolled to is remembered: asking the browser makes it lay out the page there and
    // then.
    Object.assign(this, { height, max, build, open, empty, items: [], pool: [], chosen: -1, top: 0 });
    this.filler = element("div", "filler");
    this.none = element("p", "none");
    this.view = element("div", "rows", this.filler);
    this.view.tabIndex = 0;
    this.view.setAttribute("role", "rowgroup");
    host.append(this.view, this.none);
    this.view.addEventListener("scroll", () => {
      this.top = this.view.scrollTop;
      this.draw();
    }, { passive: true });
    this.view.addEventListener("keydown", (event) => this.key(event));
  }

  show(items) {
    this.items = items;
    this.none.hidden = items.length > 0;
    this.view.hidden = items.length === 0;
    say(this.none, this.empty());
    const all = items.length * this.height;
    const height = `${Math.min(all, this.max)}px`;
    if (this.view.style.height !== height) this.view.style.height = height;
    if (this.filler.style.height !== `${all}px`) this.filler.style.height = `${all}px`;
    this.draw();
  }

  draw() {
    const top = Math.min(this.top, Math.max(0, this.items.length * this.height - this.max));
    const first = Math.max(0, Math.floor(top / this.height) - 2);
    const num = Math.min(this.items.length - first, Math.ceil(this.max / this.height) + 4);
    while (this.pool.length < num) {
      const row = this.build();
      row.element.setAttribute("role", "row");
      row.element.addEventListener("click", () => this.choose(row.number, true));
      this.filler.append(row.element);
      this.pool.push(row);
    }
    this.pool.forEach((row, place) => {
      const number = first + place;
      const isThere = place < num && number < this.items.length;
      if (row.element.hidden === isThere) row.element.hidden = !isThere;
      if (!isThere) return;
      row.number = number;
      const moved = `translateY(${number * this.height}px)`;
      if (row.element.style.transform !== moved) row.element.style.transform = moved;
      mark(row.element, "aria-rowindex", number + 2);
      row.element.classList.toggle("chosen", number === this.chosen);
      row.show(this.items[number]);
    });
  }

  choose(number, opens) {
    if (!this.open) return;
    this.chosen = number;
    this.draw();
    if (opens && this.items[number]) this.open(this.items[number]);
  }

  key(event) {
    if (event.target !== this.view || !this.open) return;
    const page = Math.floor(this.max / this.height);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page };
    if (event.key in steps) {
      const last = this.items.length - 1;
      const next = Math.max(0, Math.min(last, this.chosen + steps[event.key]));
      const [top, end] = [next * this.height, (next + 1) * this.height];
      if (top < this.view.scrollTop) this.view.scrollTop = top;
      if (end > this.view.scrollTop + this.max) this.view.scrollTop = end - this.max;
      this.choose(next, false);
      event.preventDefault();
    } else if (event.key === "Enter") {
      this.choose(Math.max(0, this.chosen), true);
      event.preventDefault();
    }
  }
}

// Rows with a head by which they are sorted.
export class Table {
  // A column: { label, width, of(item) to sort by, cell() => { element, show(item) } }, or
  // { ..., text(item) }.
  constructor(host, label, columns, options) {
    Object.assign(this, { columns, sorted: options.sorted ?? null, items: [], matches: () => true });
    const table = element("div", "table");
    table.setAttribute("role", "table");
    table.setAttribute("aria-label", label);
    this.element = table;
    const widths = columns.map((column) => column.width).join(" ");
    this.heads = columns.map((column, number) => {
      const head = element("div", column.isNumber ? "number" : "");
      head.setAttribute("role", "columnheader");
      if (column.of) head.append(button(column.label, "", () => this.sort(number)));
      else head.append(column.label);
      return head;
    });
    const head = element("div", "row head", ...this.heads);
    head.setAttribute("role", "row");
    head.style.gridTemplateColumns = widths;
    const inner = element("div", "table-inner", head);
    table.append(inner);
    host.append(table);
    const build = () => {
      const cells = columns.map((column) => {
        const cell = column.cell?.() ?? { element: element("div") };
        cell.element.classList.toggle("number", Boolean(column.isNumber));
        cell.element.setAttribute("role", "cell");
        return cell;
      });
      const row = element("div", "row", ...cells.map((cell) => cell.element));
      row.style.gridTemplateColumns = widths;
      const show = (item) => columns.forEach((column, number) => {
        const cell = cells[number];
        if (cell.show) return cell.show(item);
        const text = column.text(item);
        say(cell.element, text);
        if (column.title && cell.element.title !== text) cell.element.title = text;
      });
      return { element: row, show };
    };
    this.rows = new Rows(inner, { ...options, build });
    this.headline();
  }

  sort(number) {
    const isSame = this.sorted?.[0] === number;
    this.sorted = isSame && this.sorted[1] === "descending" ? null
      : [number, isSame ? "descending" : "ascending"];
    this.headline();
    this.show(this.items);
  }

  headline() {
    this.heads.forEach((head, number) => {
      head.setAttribute("aria-sort", this.sorted?.[0] === number ? this.sorted[1] : "none");
    });
  }

  filter(matches) {
    this.matches = matches;
    this.show(this.items);
  }

  show(items) {
    this.items = items;
    let shown = items.filter(this.matches);
    if (this.sorted) {
      const [number, order] = this.sorted;
      const { of } = this.columns[number];
      const sign = order === "ascending" ? 1 : -1;
      const keyed = shown.map((item) => [of(item), item]);
      keyed.sort(([a], [b]) => (a < b ? -sign : a > b ? sign : 0));
      shown = keyed.map(([, item]) => item);
    }
    this.element.setAttribute("aria-rowcount", shown.length + 1);
    this.rows.show(shown);
    return shown.length;
  }
}

// Shows only what has one of the words in it.
export function searched(input, table, textOf) {
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    table.filter((item) => {
      const text = textOf(item).toLowerCase();
      return words.every((word) => text.includes(word));
    });
  });
}
