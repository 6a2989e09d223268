// SPDX-License-Identifier: Apache-2.0
#include "preprocess.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <stdexcept>
#include <utility>

namespace {

constexpr int kBits = 22;  // of a weight after the point, as in Pillow
constexpr int kMostSide = 32768;

// The pixels along one side that an output pixel is made of: `first` and those after it, with their weights.
struct Taps {
    int first;
    std::vector<int32_t> weights;

    Taps(int first, const std::vector<double>& shares) : first(first) {
        for (const double share : shares) {
            weights.push_back(static_cast<int32_t>((share < 0 ? -0.5 : 0.5) + share * (1 << kBits)));
        }
    }
};

double linear(double x) { return std::max(0.0, 1.0 - std::abs(x)); }

double cubic(double x, double a) {
    x = std::abs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
}

// Every output pixel is the weighted average of all the pixels that it covers: Pillow's resize.
std::vector<Taps> averaging(int in, int out, bool bicubic) {
    std::vector<Taps> found;
    const double scale = static_cast<double>(in) / out, wide = std::max(scale, 1.0);
    const double support = (bicubic ? 2.0 : 1.0) * wide;
    for (int i = 0; i < out; ++i) {
        const double centre = (i + 0.5) * scale;
        const int first = std::max(0, static_cast<int>(centre - support + 0.5));
        const int end = std::min(in, static_cast<int>(centre + support + 0.5));
        std::vector<double> shares;
        double sum = 0.0;
        for (int x = first; x < end; ++x) {
            const double at = (x - centre + 0.5) * (1.0 / wide);
            shares.push_back(bicubic ? cubic(at, -0.5) : linear(at));
            sum += shares.back();
        }
        for (double& share : shares) share /= sum;
        found.emplace_back(first, shares);
    }
    return found;
}

// Every output pixel lies between two pixels (four if bicubic), and the others count for nothing: PyTorch's resize
// without antialias. Beyond the edge the last pixel is repeated.
std::vector<Taps> interpolating(int in, int out, bool bicubic) {
    std::vector<Taps> found;
    const int reach = bicubic ? 2 : 1;
    for (int i = 0; i < out; ++i) {
        const double centre = (i + 0.5) * in / out - 0.5, at = bicubic ? centre : std::max(centre, 0.0);
        const int left = static_cast<int>(std::floor(at));
        const auto inside = [&](int x) { return std::clamp(x, 0, in - 1); };
        const int first = inside(left - reach + 1);
        std::vector<double> shares(inside(left + reach) - first + 1);
        for (int x = left - reach + 1; x <= left + reach; ++x) {
            shares[inside(x) - first] += bicubic ? cubic(x - at, -0.75) : linear(x - at);
        }
        found.emplace_back(first, shares);
    }
    return found;
}

// Pillow takes the pixel at the centre of the output pixel, PyTorch that at its corner.
std::vector<Taps> nearest(int in, int out, bool centred) {
    std::vector<Taps> found;
    const double scale = static_cast<double>(in) / out;
    double centre = scale * 0.5;
    for (int i = 0; i < out; ++i, centre += scale) {
        const int pixel = static_cast<int>(centred ? centre : static_cast<float>(i) * static_cast<float>(scale));
        found.emplace_back(std::min(pixel, in - 1), std::vector<double>{1.0});
    }
    return found;
}

std::vector<Taps> taps(int in, int out, const Preprocess& p) {
    const bool bicubic = p.interpolation == Interpolation::bicubic;
    if (p.interpolation == Interpolation::nearest) return nearest(in, out, p.antialias);
    return p.antialias ? averaging(in, out, bicubic) : interpolating(in, out, bicubic);
}

// Resize one row or column; `step` bytes lie between its pixels.
void resize_line(const std::vector<Taps>& side, const uint8_t* in, uint8_t* out, int step) {
    for (const Taps& one : side) {
        for (int c = 0; c < 3; ++c) {
            int64_t sum = 1 << (kBits - 1);
            for (size_t k = 0; k < one.weights.size(); ++k) {
                sum += static_cast<int64_t>(one.weights[k]) * in[(one.first + k) * step + c];
            }
            out[c] = static_cast<uint8_t>(std::clamp<int64_t>(sum >> kBits, 0, 255));
        }
        out += step;
    }
}

Image blank(int width, int height) {
    if (width < 1 || height < 1 || width > kMostSide || height > kMostSide) {
        throw std::runtime_error("no image is " + std::to_string(width) + "x" + std::to_string(height) + " pixels");
    }
    return {width, height, std::vector<uint8_t>(static_cast<size_t>(width) * height * 3)};
}

Image resize_width(Image in, int width, const Preprocess& p) {
    if (width == in.width) return in;
    Image out = blank(width, in.height);
    const auto side = taps(in.width, width, p);
    for (int y = 0; y < in.height; ++y) {
        resize_line(side, &in.pixels[size_t(3) * in.width * y], &out.pixels[size_t(3) * width * y], 3);
    }
    return out;
}

Image resize_height(Image in, int height, const Preprocess& p) {
    if (height == in.height) return in;
    Image out = blank(in.width, height);
    const auto side = taps(in.height, height, p);
    for (int x = 0; x < in.width; ++x) {
        resize_line(side, &in.pixels[3 * x], &out.pixels[3 * x], 3 * in.width);
    }
    return out;
}

// The order matters, since the result between the two is rounded. Pillow before version 13 always resized the width
// first; where its order differs from this one, a pixel can differ by 1.
Image resize(Image image, int width, int height, const Preprocess& p) {
    const int lower = image.height - height, narrower = image.width - width;
    if (p.antialias && lower > 0 && lower > 2 * narrower) {
        return resize_width(resize_height(std::move(image), height, p), width, p);
    }
    return resize_height(resize_width(std::move(image), width, p), height, p);
}

// Half of what is cut off; a half pixel is rounded to the even number.
int margin(int have, int want) { return static_cast<int>(std::nearbyint((have - want) / 2.0)); }

float grey(const uint8_t* rgb, bool of_tensor) {
    if (of_tensor) return std::trunc(rgb[0] * 0.2989f + rgb[1] * 0.587f + rgb[2] * 0.114f);
    return static_cast<float>((rgb[0] * 19595 + rgb[1] * 38470 + rgb[2] * 7471 + 0x8000) >> 16);
}

// The next number in the header of a PPM file; `#` begins a comment.
int header(std::istream& in) {
    while (in >> std::ws && in.peek() == '#') in.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
    int number = 0;
    in >> number;
    return number;
}

}  // namespace

std::vector<float> Preprocess::operator()(Image image) const {
    if (resize_height > 0) {
        int high = resize_height, wide = resize_width;
        if (wide == 0) {  // the longer side in proportion, without its fraction
            const double side = resize_height;
            wide = image.width <= image.height ? resize_height : static_cast<int>(side * image.width / image.height);
            high = image.width <= image.height ? static_cast<int>(side * image.height / image.width) : resize_height;
        }
        image = resize(std::move(image), wide, high, *this);
    }
    if (image.width < width || image.height < height) {
        throw std::runtime_error("the image is smaller than the network's input");
    }
    const int left = margin(image.width, width), top = margin(image.height, height);
    const bool of_tensor = resize_height > 0 && !antialias;  // torchvision resizes a tensor then, not an image
    std::vector<float> input(static_cast<size_t>(channels) * height * width);
    float* out = input.data();
    for (int c = 0; c < channels; ++c) {
        for (int y = 0; y < height; ++y) {
            const uint8_t* rgb = &image.pixels[(size_t(top + y) * image.width + left) * 3];
            for (int x = 0; x < width; ++x, rgb += 3) {
                const float value = channels == 1 ? grey(rgb, of_tensor) : rgb[bgr ? 2 - c : c];
                *out++ = (value * (1.0f / 255) - mean[c]) / std[c];
            }
        }
    }
    return input;
}

Image read_ppm(const std::string& file) {
    std::ifstream in(file, std::ios::binary);
    std::string kind;
    in >> kind;
    const int width = header(in), height = header(in), most = header(in);
    in.get();  // the one space before the pixels
    if (!in || (kind != "P6" && kind != "P5") || most != 255) {
        throw std::runtime_error(file + " is not a binary PPM or PGM file with values of 0 to 255");
    }
    Image image = blank(width, height);
    const size_t pixels = image.pixels.size() / 3, bytes = kind == "P6" ? 3 * pixels : pixels;
    in.read(reinterpret_cast<char*>(image.pixels.data()), static_cast<std::streamsize>(bytes));
    if (!in) throw std::runtime_error(file + " is cut off");
    if (kind == "P5") {  // from the last pixel, which lies behind what is still to be read
        for (size_t i = pixels; i-- > 0;) {
            std::fill_n(&image.pixels[3 * i], 3, uint8_t(image.pixels[i]));
        }
    }
    return image;
}
