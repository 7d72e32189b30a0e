"""Pascal VOC: an XML file for each image.

Its corners are numbers of pixels, counted from 1, and the last pixel belongs to the object
(Everingham et al., IJCV 2010, and detectron2's own reader). Pixel n covers n - 1 to n in the
coordinates of this project, so (xmin, xmax) becomes x = xmin - 1, width = xmax - xmin + 1. Many
programs write what begins at 0 instead. Where that shows, it is taken so: a corner of 0 stays at 0,
and a box with a fraction among its corners is taken as coordinates, not as pixels.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from xml.etree import ElementTree

from ..image_folder import ImageFolder
from ..image_headers import image_size
from ..image_names import IMAGES
from ..near_names import NearNames, near_text
from .foreign_files import find_entry, list_files, list_images, list_tree, read_text
from .source import Candidate, Finding, Source
from .voc_lists import find_lists, listed_names, stem_of
from .voc_xml import annotation_of, box_of, object_of


def find(folder: str) -> list[Candidate]:
    """The XML files of a folder: in ``Annotations/`` and folders in it, by split where
    ``ImageSets/Main/`` says so, or beside their images.
    """
    inner = find_entry(folder, "annotations")
    if inner and os.path.isdir(inner) and list_tree(inner, ".xml"):
        images = find_entry(folder, "jpegimages") or find_entry(folder, "images") or folder
        lists = find_lists(folder)
        if not lists:
            reader = functools.partial(read, inner, images)
            return [Candidate("voc", None, os.path.basename(inner), reader, (inner, images))]
        paths = [path for _, path in lists]
        return [
            Candidate(
                "voc",
                split,
                os.path.relpath(path, folder),
                functools.partial(read, inner, images, path, paths),
                (path,),
            )
            for split, path in lists
        ]
    if list_files(folder, ".xml"):
        return [Candidate("voc", None, "*.xml", functools.partial(read, folder, folder), (folder,))]
    return []


def read(
    annotations: str, images: str, split_list: str | None = None, all_lists: Sequence[str] = ()
) -> Source:
    """Read a folder of XML files, and those of the folders in it.

    Objects that are marked as difficult are objects as all others. A file without objects is of an
    image without objects; an image without a file is left out, as nobody has said what it shows.

    Args:
        annotations: the folder of the XML files.
        images: the folder of the images.
        split_list: text file with a name, without its ending, in each line; else all are read.
        all_lists: the lists of all splits; what they name is not left out.

    Raises:
        SourceError: a list cannot be read.
    """
    reader = _Reader(ImageFolder(annotations), ImageFolder(images))
    is_flat = os.path.abspath(annotations) == os.path.abspath(images)
    names = list_files(annotations, ".xml") if is_flat else list_tree(annotations, ".xml")
    if split_list is not None:
        for other in all_lists:
            reader.belongs(other, listed_names(other))
        names = reader.listed(split_list, names)
    for name in names:
        reader.read(name)
    return reader.source(left_out=None if split_list else set(list_images(images)))


class _Reader:
    def __init__(self, annotations: ImageFolder, images: ImageFolder) -> None:
        self._annotations = annotations
        self._images = images
        self._by_stem: dict[str, list[str]] = {}
        for name in list_images(images.root):
            self._by_stem.setdefault(os.path.splitext(name)[0], []).append(name)
        self._data: dict[str, list] = {"images": [], "annotations": [], "categories": []}
        self._places: dict[int, str] = {}
        self._findings: list[Finding] = []
        self._of_name: dict[str, str] = {}
        self._difficult = self._from_zero = 0
        self._used: set[str] = set()
        self._near: NearNames | None = None

    def belongs(self, split_list: str, names: list[str]) -> None:
        """Take note of a list and what it names, of this split or another."""
        self._used.add(split_list)
        for name in names:
            stem = stem_of(name)
            self._used.add(self._place(f"{stem}.xml"))
            self._used.update(
                os.path.join(self._images.root, x) for x in self._by_stem.get(stem, ())
            )

    def listed(self, split_list: str, there: list[str]) -> list[str]:
        """File names of a split's list, those that are missing being found."""
        by_stem = {os.path.splitext(name)[0]: name for name in there}
        near = NearNames(self._annotations.root, (".xml",))
        found = []
        for name in listed_names(split_list):
            # "cat 1", as in lists of a class, and "a.jpg" stand for their first part.
            stems = (name, re.sub(r"\s+-?[01]$", "", name), stem_of(name))
            own = next((by_stem[stem] for stem in stems if stem in by_stem), None)
            if own is None:
                remedy = f"Add the file to {self._annotations.root}, or remove the line."
                value = f"{stem_of(name)}.xml"
                value += near_text(near.find(value))
                self._find("listed file is missing", split_list, value, remedy)
            else:
                found.append(own)
        return list(dict.fromkeys(found))

    def read(self, name: str) -> None:
        """Read one XML file."""
        place = self._place(name)
        self._used.add(place)
        try:
            root = annotation_of(read_text(self._annotations, name))
        except (ValueError, OSError) as error:
            remedy = "Mend the file, or remove it together with its image."
            self._find("unreadable annotation file", place, str(error), remedy)
            return
        file_name = self._file_name(name, root)
        self._used.add(os.path.join(self._images.root, file_name))
        image = {"id": len(self._data["images"]) + 1, "file_name": file_name}
        try:
            image["width"], image["height"] = self._size(file_name, root)
        except (ValueError, OSError) as error:
            remedy = "Mend the image, or remove it together with its XML file."
            self._find("unreadable image", f"{self._images.root}/{file_name}", str(error), remedy)
            return
        if file_name in self._of_name:
            remedy = f"'{self._of_name[file_name]}' is of the same image: remove one of them."
            self._find("image with two annotation files", place, file_name, remedy)
            return
        self._of_name[file_name] = name
        self._data["images"].append(image)
        for number, node in enumerate(root.findall("object"), 1):
            self._object(node, image, f"{place}, object {number}")

    def _object(self, node: ElementTree.Element, image: dict, place: str) -> None:
        try:
            name, corners = object_of(node)
        except ValueError as error:
            remedy = "Give it a <name>, and a <bndbox> of xmin, ymin, xmax and ymax in pixels."
            self._find("unreadable object", place, str(error), remedy)
            return
        self._difficult += (node.findtext("difficult") or "").strip() == "1"
        self._from_zero += 0 in corners[:2]
        annotation = {
            "id": len(self._data["annotations"]) + 1,
            "image_id": image["id"],
            # Replaced by a number once all names are known.
            "category_id": name,
            "bbox": box_of(*corners),
        }
        self._data["annotations"].append(annotation)
        self._places[annotation["id"]] = place

    def _file_name(self, name: str, root: ElementTree.Element) -> str:
        """The image that <filename> names, else that of the XML file's own name."""
        stem, place = os.path.splitext(name)[0], self._place(name)
        text = (root.findtext("filename") or "").strip()
        named = os.path.normpath(text or os.path.basename(stem))
        own = self._by_stem.get(stem, [])
        # Beside the XML file's own place first: day1/a.xml may name a.jpg of day1/.
        beside = os.path.normpath(os.path.join(os.path.dirname(stem), named))
        for there in dict.fromkeys((beside, named)):
            path = os.path.join(self._images.root, there)
            if self._images.holds(there) and os.path.isfile(path):
                others = [x for x in own if os.path.splitext(there)[0] != stem or there == stem]
                if others:
                    remedy = f"There is also '{others[0]}', of the XML file's name: remove one."
                    self._find("filename mismatch", place, named, remedy)
                return there
        if not own:
            return self._missing(place, named, stem, is_given=bool(text))
        is_bare = named in (stem, os.path.basename(stem))
        if len(own) > 1:
            remedy = f"There are {' and '.join(own)}: name one of them in <filename>."
            self._find("filename mismatch", place, named, remedy)
        elif not is_bare:
            remedy = f"'{own[0]}', which has the XML file's own name, is taken. Correct <filename>."
            self._find("filename mismatch", place, named, remedy, "warning")
        return own[0]

    def _missing(self, place: str, named: str, stem: str, *, is_given: bool) -> str:
        """Name the file that may be meant by a name, of which there is none."""
        self._near = self._near or NearNames(self._images.root, IMAGES)
        found = self._near.find(named) or self._near.find(stem)
        if found and not os.path.lexists(os.path.join(self._images.root, named)):
            self._find("filename mismatch", place, f"{named}{near_text(found)}", "Correct it.")
        return named if is_given else f"{stem}.jpg"

    def _size(self, file_name: str, root: ElementTree.Element) -> tuple[int, int]:
        """As declared, else by the image's header."""
        sides = [(root.findtext(f"size/{side}") or "").strip() for side in ("width", "height")]
        if all(re.fullmatch(r"0*[1-9]\d{0,9}", side, re.ASCII) for side in sides):
            return int(sides[0]), int(sides[1])
        return image_size(self._images, file_name)

    def source(self, left_out: set[str] | None) -> Source:
        """All that was read; ``left_out`` are images of which some may have no file."""
        annotations = self._data["annotations"]
        names = sorted({annotation["category_id"] for annotation in annotations})
        self._data["categories"] = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
        ids = {name: i for i, name in enumerate(names, 1)}
        for annotation in annotations:
            annotation["category_id"] = ids[annotation["category_id"]]
        unlabelled = (left_out or set()) - self._of_name.keys()
        self._used.update(os.path.join(self._images.root, x) for x in unlabelled)
        notes = {
            "{} objects marked as difficult are objects as all others.": self._difficult,
            "{} boxes begin at 0, though VOC counts pixels from 1: whatever wrote them may count "
            "from 0. Then boxes are a pixel too large to the left and top.": self._from_zero,
            "{} images without an XML file are left out. One without objects needs a file "
            "without <object>.": len(unlabelled),
        }
        return Source(
            path=self._annotations.root,
            format="voc",
            annotation_file=self._annotations.root,
            image_root=self._images.root,
            data=self._data,
            places=self._places,
            findings=self._findings,
            notes=[text.format(count) for text, count in notes.items() if count],
            used=self._used,
        )

    def _place(self, name: str) -> str:
        return os.path.join(self._annotations.root, name)

    def _find(self, kind: str, file: str, value: str, remedy: str, severity: str = "error") -> None:
        self._findings.append(Finding(kind, severity, file, None, f"{value:.400}", remedy))
