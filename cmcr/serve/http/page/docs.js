"use strict";

function element(kind, text, ...within) {
  const made = document.createElement(kind);
  made.textContent = text;
  made.append(...within);
  return made;
}

function folded(title, value) {
  const text = element("pre", JSON.stringify(value, null, 2));
  text.tabIndex = 0;  // so that the keyboard can scroll it
  return element("details", "", element("summary", title), text);
}

async function begin() {
  const told = await (await fetch("/openapi.json")).json();
  const schema = (media) => {
    const name = media?.schema?.$ref?.split("/").pop();
    return name ? told.components.schemas[name] : media?.schema;
  };
  for (const [path, methods] of Object.entries(told.paths)) {
    for (const [method, about] of Object.entries(methods)) {
      const section = element("section", "", element("h2", `${method.toUpperCase()} ${path}`),
        element("p", about.description ?? ""));
      for (const [type, media] of Object.entries(about.requestBody?.content ?? {})) {
        section.append(folded(`takes ${type}`, schema(media)));
      }
      for (const [type, media] of Object.entries(about.responses["200"]?.content ?? {})) {
        section.append(folded(`gives ${type}`, schema(media)));
      }
      section.append(element("p", `answers ${Object.keys(about.responses).join(", ")}`));
      document.getElementById("routes").append(section);
    }
  }
  document.getElementById("routes").append(folded("what they are made of", told.components.schemas));
}

begin();
