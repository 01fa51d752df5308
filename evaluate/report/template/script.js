// Point clouds: three signed bytes a point, turned by dragging or by the arrow keys.
"use strict";
for (const canvas of document.querySelectorAll("canvas[data-points]")) {
  const bytes = Uint8Array.from(atob(canvas.dataset.points), (one) => one.charCodeAt(0));
  const points = new Int8Array(bytes.buffer);
  const pen = canvas.getContext("2d");
  const turn = { yaw: 0, pitch: 0 };

  const draw = () => {
    const size = canvas.width;
    const [cy, sy, cp, sp] = [Math.cos(turn.yaw), Math.sin(turn.yaw), Math.cos(turn.pitch), Math.sin(turn.pitch)];
    const turned = [];
    for (let at = 0; at < points.length; at += 3) {
      const [x, y, z] = [points[at] / 127, points[at + 1] / 127, points[at + 2] / 127];
      const [across, away] = [cy * x + sy * z, cy * z - sy * x];
      turned.push([across, cp * y - sp * away, sp * y + cp * away]);
    }
    turned.sort((one, other) => one[2] - other[2]);
    pen.clearRect(0, 0, size, size);
    pen.fillStyle = getComputedStyle(canvas).color;
    for (const [x, y, z] of turned) {
      pen.globalAlpha = 0.55 + 0.45 * z;
      pen.beginPath();
      pen.arc(size * (0.5 + 0.46 * x), size * (0.5 - 0.46 * y), size * (0.014 + 0.006 * z), 0, 7);
      pen.fill();
    }
  };
  const by = (yaw, pitch) => {
    turn.yaw += yaw;
    turn.pitch = Math.max(-1.5, Math.min(1.5, turn.pitch + pitch));
    draw();
  };

  canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
  canvas.addEventListener("pointermove", (event) => {
    if (event.buttons) by(event.movementX / 80, event.movementY / 80);
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-0.2, 0], ArrowRight: [0.2, 0], ArrowUp: [0, -0.2], ArrowDown: [0, 0.2] }[event.key];
    if (!step) return;
    event.preventDefault();
    by(...step);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
}
