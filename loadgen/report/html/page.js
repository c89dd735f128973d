// The point nearest to the pointer tells its values.
const REACH = 40;
const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
document.body.append(tip);
for (const svg of document.querySelectorAll("figure.plot svg")) {
  const hits = [...svg.querySelectorAll("circle.hit")].map((circle) => ({
    circle,
    x: Number(circle.getAttribute("cx")),
    y: Number(circle.getAttribute("cy")),
    text: circle.querySelector("title").textContent,
  }));
  // The browser's own tooltips would come on top of ours.
  hits.forEach((hit) => hit.circle.querySelector("title").remove());
  let shown = null;
  const show = (hit) => {
    shown?.circle.classList.remove("on");
    shown = hit;
    hit?.circle.classList.add("on");
    tip.hidden = !hit;
  };
  svg.addEventListener("pointermove", (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const far = (hit) => Math.hypot(hit.x - at.x, hit.y - at.y);
    const near = hits.reduce((best, hit) => (far(hit) < (best ? far(best) : REACH) ? hit : best), null);
    show(near);
    if (!near) return;
    tip.textContent = near.text;
    const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 4);
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.max(4, event.clientY - tip.offsetHeight - 10)}px`;
  });
  svg.addEventListener("pointerleave", () => show(null));
}
