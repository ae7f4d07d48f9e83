// What the theme leaves out for keyboards and screen readers.
document.addEventListener("DOMContentLoaded", () => {
  const set = (where, name, value) => document.querySelectorAll(where).forEach((part) => part.setAttribute(name, value));
  set('[role="heading"]:not([aria-level])', "aria-level", "2");
  set(".sidebar-drawer", "aria-label", "Pages");
  set(".toc-drawer", "aria-label", "On this page");
  set(".sig > dl, .sig > dl > dd", "role", "presentation"); // the lines of a long signature are no list of definitions
  const scrolls = () => document.querySelectorAll("pre, .table-wrapper, .output, .output > div").forEach((part) => {
    if (part.scrollWidth > part.clientWidth) part.setAttribute("tabindex", "0");
    else part.removeAttribute("tabindex");
  });
  scrolls();
  addEventListener("resize", scrolls);
});
