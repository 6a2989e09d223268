// SPDX-License-Identifier: Apache-2.0
// An image becomes the input of the network, as Pillow and torchvision do it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

struct Image {
    int width = 0, height = 0;
    std::vector<uint8_t> pixels;  // RGB, row by row
};

enum class Interpolation { nearest, bilinear, bicubic };

// The fields of preprocess.json.
struct Preprocess {
    int channels, height, width;     // of the input
    int resize_height, resize_width; // both 0: no resize; resize_width 0: resize_height is the shorter side
    Interpolation interpolation;
    bool antialias, bgr;
    std::vector<float> mean, std;    // of pixels in 0..1

    // The input (channels, height, width) of one image.
    std::vector<float> operator()(Image image) const;
};

// A binary PPM (P6) or PGM (P5) file with values of 0 to 255.
Image read_ppm(const std::string& file);
