// How numbers and times are written. Nothing here touches the page.

const BYTES = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function bytes(value) {
  let unit = 0;
  while (value >= 1024 && unit + 1 < BYTES.length) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${value.toFixed(digits)} ${BYTES[unit]}`;
}

// 1234 as 1,234, and what is larger in thousands or millions.
export function count(value) {
  if (value >= 1e9) return `${(value / 1e9).toFixed(1)} G`;
  if (value >= 1e6) return `${(value / 1e6).toFixed(1)} M`;
  if (value >= 1e5) return `${(value / 1e3).toFixed(0)} k`;
  return String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, ",");
}

// Three digits that count.
export function number(value) {
  if (value >= 1000) return count(value);
  if (value >= 100) return value.toFixed(0);
  return value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

export function milliseconds(value) {
  if (value >= 60000) return span(value);
  return value >= 1000 ? `${number(value / 1000)} s` : `${number(value)} ms`;
}

// A time as its two largest units.
export function span(ms) {
  const seconds = Math.floor(ms / 1000);
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${seconds % 60} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function percent(share) {
  const value = share * 100;
  return `${value >= 10 || value === 0 ? value.toFixed(0) : value.toFixed(1)} %`;
}

// Made once: that takes longer than all that is written with it.
const CLOCK = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });

export function clock(ms) {
  return CLOCK.format(ms);
}

export function plural(num, noun) {
  return `${count(num)} ${noun}${num === 1 ? "" : "s"}`;
}
